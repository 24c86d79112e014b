"""A whole training step of a model: forward, backward, averaged gradients, update.

python -m benchmarks.training [--toy] [--output FILE]

Two ranks, one intra-op thread each: ResNet-20 with 32 images of 32x32 per rank, ResNet-50 and
MobileNetV2 with 4 of 224x224; the contenders take turns.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks.harness.conductor import Conductor, Plan
from benchmarks.harness.results import Bar, Report, Timing, arguments, finish
from benchmarks.harness.turns import Contender, take_turns

_MPI, _TF = Plan("mpi", "mpirun", "mpi"), Plan("tf", "cluster", "tf")
OURS, KERAS_LOCAL, KERAS_SYNC = "syncbn", "Keras local", "Keras synchronized"
_ENTRIES = (
    (OURS, "ours", _MPI),
    (KERAS_LOCAL, "keras", _MPI),
    (OURS, "ours", _TF),
    (KERAS_SYNC, "keras synchronized", _TF),
)
RESNET20 = "a step of ResNet-20"
# Rounds, steps of a round, and arguments by case.
_CASES: dict[str, tuple[int, int, dict[str, Any]]] = {
    RESNET20: (6, 5, {"batch": 32, "pixels": 32, "blocks": 3}),
    "a step of ResNet-50": (3, 2, {"batch": 4, "pixels": 224, "application": "ResNet50"}),
    "a step of MobileNetV2": (3, 2, {"batch": 4, "pixels": 224, "application": "MobileNetV2"}),
}
_TOYS: dict[str, tuple[int, int, dict[str, Any]]] = {
    RESNET20: (1, 2, {"batch": 2, "pixels": 8, "blocks": 1}),
}


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__).parse_args(argv)
    finish(measure(options.toy), options.output)


def measure(toy: bool) -> Report:
    """Measures the time of a step of each contender."""
    report = Report("training", {"ranks": 2, "intra-op threads per rank": 1})
    with Conductor("benchmarks.training_steps") as conductor:
        jobs = conductor.start([_MPI, _TF])
        for in_words, (rounds, steps, case) in (_TOYS if toy else _CASES).items():
            contenders = [Contender(name, jobs[plan.name], case) for _, name, plan in _ENTRIES]
            for (words, _, plan), taken in zip(
                _ENTRIES, take_turns(contenders, rounds, steps, toy=toy), strict=True
            ):
                report.timings.append(Timing.of(words, plan.name, in_words, *taken))
    if not toy:
        ours = report.median(OURS, RESNET20, "mpi")
        report.bars = [
            Bar(
                f"ResNet-20 step, mpi, faster than {rival}",
                report.median(rival, RESNET20) / ours,
                limit,
                at_most=False,
            )
            for rival, limit in ((KERAS_SYNC, 4), (KERAS_LOCAL, 1.35))
        ]
    return report


if __name__ == "__main__":
    main()
