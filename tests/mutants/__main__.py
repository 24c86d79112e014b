"""python -m tests.mutants    # `make mutants`; the table and the survivors come to build/mutants"""

import sys

from tests.mutants.judging import UnsoundTestsError, Verdict, judge_all
from tests.mutants.making import Mutant, sample
from tests.mutants.modules import known_modules
from tests.mutants.options import options
from tests.mutants.results import OUTPUT, keep
from tests.processes import REPOSITORY


def main() -> int:
    asked, modules = options().parse_args(), known_modules()
    chosen = [m for m in modules if any(word in m.path for word in asked.only or [""])]
    jobs = [
        (module, mutant)
        for module in chosen
        for mutant in sample(REPOSITORY, module.path, asked.sample, asked.seed, module.equivalent)
    ]
    print(f"{len(jobs)} mutants of {len(chosen)} modules", flush=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    survivors = OUTPUT / "survivors.diff"
    survivors.write_text("")
    verdicts: dict[str, list[Verdict]] = {module.path: [] for module in chosen}

    def tell(mutant: Mutant, verdict: Verdict) -> None:
        verdicts[mutant.path].append(verdict)
        done = sum(map(len, verdicts.values()))
        place = f"{mutant.path}:{mutant.line}"
        print(f"{done}/{len(jobs)} {verdict:8} {place} {mutant.operator}", flush=True)
        if verdict == "survived":
            with survivors.open("a") as file:
                file.write(f"# {place} {mutant.operator}\n{mutant.diff}\n\n")

    try:
        judge_all(jobs, OUTPUT, asked.workers, tell)
    except UnsoundTestsError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\n{keep(verdicts, [module.path for module in modules])}\nSurvivors: {survivors}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
