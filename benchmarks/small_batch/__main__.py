"""When do batch statistics over all ranks help? Trains the study, and writes its page.

python -m benchmarks.small_batch [--seeds 5] [--output DIR]

Takes minutes on two cores; after an interruption the same command continues. Writes study.md,
study.json and figures/study-*.svg to DIR (default: docs).
"""

import argparse
import sys
from pathlib import Path

from benchmarks.small_batch import work
from benchmarks.small_batch.figures import draw
from benchmarks.small_batch.page import write_page
from benchmarks.small_batch.plan import Plan
from benchmarks.small_batch.store import load, save
from launcher.errors import LauncherError, UsageError

_TOY = Plan(worlds=(2,), batches=(2,), seeds=2, samples=64)


def main() -> None:
    options = _options()
    plan = _TOY if options.toy else Plan(seeds=options.seeds, peak_rate=options.peak_rate)
    output = options.output or Path("runs/study-toy" if options.toy else "docs")
    try:
        run(plan, output)
    except LauncherError as error:
        print(f"benchmarks.small_batch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run(plan: Plan, output: Path) -> None:
    """Runs the missing parts of the plan, then writes page and figures.

    Raises:
        UsageError: The output cannot be written, or contains another study.
        LauncherError: The ranks of the numerical study failed.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to --output {output}: {error.strerror}") from error
    file = output / "study.json"
    study = load(file, plan)
    work.train(study, file)
    if not study.numerics:
        study.numerics = work.measure_numerics()
        save(study, file)
    draw(study, output / "figures")
    write_page(study, output / "study.md")
    print(output / "study.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=_several, default=Plan.seeds, help="seeds per training")
    parser.add_argument(
        "--peak-rate", type=float, default=Plan.peak_rate, help="learning rate of the largest batch"
    )
    parser.add_argument("--toy", action="store_true", help="a few steps, to check that it works")
    parser.add_argument("--output", type=Path, help="docs by default")
    return parser.parse_args()


def _several(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected at least 2, for error bars. Received: {text}")
    return int(text)


if __name__ == "__main__":
    main()
