"""The cost of each option, compared with the layer without it and Keras' layer with the option.

python -m benchmarks.options [--toy] [--output FILE]

Two ranks over MPI, one intra-op thread each. All contenders run concurrently and take turns.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks.harness.conductor import Conductor, Plan
from benchmarks.harness.results import Report, Timing, arguments, finish
from benchmarks.harness.turns import Contender, take_turns
from benchmarks.layer import KERAS_LOCAL, OURS, in_words
from benchmarks.options_steps import OPTIONS

_IMAGES = {"shape": [8, 8, 8, 256], "depth": 20}
_SEQUENCES = {"shape": [64, 50, 128], "depth": 20}
_TOY = {"shape": [4, 4, 8], "depth": 2}
PLAIN = "plain"


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__).parse_args(argv)
    finish(measure(options.toy), options.output)


def measure(toy: bool) -> Report:
    """Runs every option on its case, and the layer without options on each case."""
    rounds, steps = (1, 2) if toy else (5, 5)
    report = Report("options", {"ranks": 2, "intra-op threads per rank": 1, "rounds": rounds})
    plan = Plan("mpi", "mpirun", "mpi")
    rows = []
    with Conductor("benchmarks.options_steps") as conductor:
        job = conductor.start([plan], 2)[plan.name]
        for case, sequences in ((_TOY if toy else _IMAGES, False), (_SEQUENCES, True)):
            if toy and sequences:
                continue
            chosen = [name for name, o in OPTIONS.items() if toy or o.sequences == sequences]
            entries = [(OURS, PLAIN), *((OURS, name) for name in chosen)]
            entries += [(KERAS_LOCAL, name) for name in chosen if OPTIONS[name].keras is not None]
            contenders = [
                Contender("ours" if layer == OURS else "keras", job, {**case, "option": option})
                for layer, option in entries
            ]
            medians = {}
            for (layer, option), taken in zip(
                entries, take_turns(contenders, rounds, steps, toy=toy), strict=True
            ):
                words = in_words(case)
                timing = Timing.of(f"{layer}, {option}", plan.name, words, *taken)
                report.timings.append(timing)
                medians[layer, option] = timing.median
            rows += [_row(option, medians) for option in chosen]
    report.details["options"] = rows
    return report


def _row(option: str, medians: dict[tuple[str, str], float]) -> dict[str, Any]:
    ours, keras = medians[OURS, option], medians.get((KERAS_LOCAL, option))
    return {
        "option": option,
        "of plain": ours / medians[OURS, PLAIN],
        "of Keras": None if keras is None else ours / keras,
    }


if __name__ == "__main__":
    main()
