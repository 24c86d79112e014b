"""A whole training step of ResNet-20: forward, backward, averaged gradients, update.

python -m benchmarks.training [--toy] [--output FILE]

Two ranks, one intra-op thread each, 32 images of 32x32 per rank; the contenders take turns.
"""

from collections.abc import Sequence

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
_CASE = {"batch": 32, "pixels": 32, "blocks": 3}
_TOY = {"batch": 2, "pixels": 8, "blocks": 1}


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__).parse_args(argv)
    finish(measure(options.toy), options.output)


def measure(toy: bool) -> Report:
    """Measures the time of a step of each contender."""
    rounds, steps, case = (1, 2, _TOY) if toy else (6, 5, _CASE)
    report = Report("training", {"ranks": 2, "intra-op threads per rank": 1, "batch per rank": 32})
    with Conductor("benchmarks.training_steps") as conductor:
        jobs = conductor.start([_MPI, _TF])
        contenders = [Contender(name, jobs[plan.name], case) for _, name, plan in _ENTRIES]
        for (words, _, plan), taken in zip(
            _ENTRIES, take_turns(contenders, rounds, steps, toy=toy), strict=True
        ):
            report.timings.append(Timing.of(words, plan.name, "a step of ResNet-20", *taken))
    if not toy:
        ours = report.median(OURS, "a step of ResNet-20", "mpi")
        report.bars = [
            Bar(
                f"ResNet-20 step, mpi, faster than {rival}",
                report.median(rival, "a step of ResNet-20") / ours,
                limit,
                at_most=False,
            )
            for rival, limit in ((KERAS_SYNC, 3), (KERAS_LOCAL, 1.15))
        ]
    return report


if __name__ == "__main__":
    main()
