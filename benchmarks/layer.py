"""Synchronized batch normalization compared with other layers: chains, forward and backward.

python -m benchmarks.layer [--toy] [--device gpu] [--output FILE]

Two ranks, one intra-op thread each. All contenders run concurrently and take turns, so that other
load affects all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.conductor import Conductor, Job, Plan
from benchmarks.harness.results import Bar, Report, Timing, arguments, finish
from benchmarks.harness.turns import Contender, take_turns

SMALL = {"shape": [8, 8, 8, 256], "depth": 50}
BIG = {"shape": [32, 56, 56, 64], "depth": 4}
_TOY = {"shape": [4, 3, 3, 8], "depth": 2}

_PLANS = {
    plan.name: plan
    for plan in (
        Plan("mpi", "mpirun", "mpi"),
        Plan("tf", "cluster", "tf"),
        Plan("horovod over MPI", "horovodrun", "horovod", stops=True),
        Plan("horovod over Gloo", "gloo", "horovod", stops=True),
        Plan("horovodrun, defaults", "horovodrun", "horovod-defaults", stops=True),
        Plan("Gloo, defaults", "gloo", "horovod-defaults", stops=True),
    )
}


@dataclass(frozen=True)
class Entry:
    """A contender: its description, its name in the service, and its job.

    Attributes:
        big: Whether it runs the large case.
    """

    words: str
    name: str
    plan: str
    big: bool = True


OURS = "syncbn"
KERAS_LOCAL = "Keras local"
FUSED_LOCAL = "TensorFlow fused local"
KERAS_SYNC = "Keras synchronized"
DEFAULTS = "syncbn over plain Horovod"

ENTRIES = (
    Entry(OURS, "ours", "mpi"),
    Entry(KERAS_LOCAL, "keras", "mpi"),
    Entry(FUSED_LOCAL, "fused", "mpi"),
    Entry(OURS, "ours", "tf"),
    Entry(KERAS_SYNC, "keras synchronized", "tf"),
    Entry(OURS, "ours", "horovod over MPI", big=False),
    Entry(OURS, "ours", "horovod over Gloo", big=False),
    Entry(KERAS_LOCAL, "keras", "horovod over Gloo", big=False),
    Entry(DEFAULTS, "ours", "horovodrun, defaults", big=False),
    Entry(DEFAULTS, "ours", "Gloo, defaults", big=False),
)
_ON_GPU = ("tf", "horovod over MPI", "horovodrun, defaults")


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--ranks", type=int, default=2, help="on GPUs: one per GPU")
    parser.add_argument("--rounds", type=int, default=5, help="turns per contender")
    parser.add_argument("--steps", type=int, default=5, help="steps per turn")
    options = parser.parse_args(argv)
    finish(
        measure(options.toy, options.device, options.ranks, options.rounds, options.steps),
        options.output,
    )


def measure(toy: bool, device: str, ranks: int, rounds: int, steps: int) -> Report:
    """Runs every contender on both cases."""
    if toy:
        rounds, steps = 1, 2
    allowed = _ON_GPU if device == "gpu" else ("mpi", "tf") if toy else tuple(_PLANS)
    entries = [e for e in ENTRIES if e.plan in allowed]
    if device == "gpu":
        entries.append(Entry(KERAS_LOCAL, "keras", "horovod over MPI"))
    settings = {
        "device": device,
        "ranks": ranks,
        "intra-op threads per rank": 1,
        "rounds": rounds,
        "steps per round": steps,
    }
    report = Report("layer", settings)
    cases = [_TOY] if toy else [SMALL, BIG]
    with Conductor("benchmarks.layer_steps", device) as conductor:
        jobs = conductor.start([_PLANS[n] for n in dict.fromkeys(e.plan for e in entries)], ranks)
        for case in cases:
            taking_part = [e for e in entries if e.big or case is not BIG]
            contenders = [Contender(e.name, jobs[e.plan], case) for e in taking_part]
            for entry, taken in zip(
                taking_part, take_turns(contenders, rounds, steps, toy=toy), strict=True
            ):
                report.timings.append(Timing.of(entry.words, entry.plan, in_words(case), *taken))
        if device == "cpu":
            report.details["copy limit"] = _copy_limit(report, jobs["mpi"], cases[-1], toy)
            report.details["transports"] = {
                name: job.call("transport")[0] for name, job in jobs.items()
            }
    if cases == [SMALL, BIG] and device == "cpu":
        report.bars = _bars(report)
    return report


def in_words(case: dict[str, Any]) -> str:
    shape = ",".join(str(size) for size in case["shape"])
    return f"{case['depth']} layers of ({shape})"


def _copy_limit(report: Report, job: Job, case: dict[str, Any], toy: bool) -> dict[str, float]:
    """A lower bound of the time: the bytes to move, at the bandwidth of a copy."""
    size = 4.0
    for length in case["shape"]:
        size *= length
    seconds = job.call("copy_seconds", shape=case["shape"], times=3 if toy else 30)
    bandwidth = 2 * size / (sum(seconds) / len(seconds))  # a copy reads and writes
    ours = report.median(OURS, in_words(case), "mpi")
    passes = job.call("passes")[0]
    limit = case["depth"] * passes * size / bandwidth
    return {
        "copy bandwidth of a rank, bytes/s": bandwidth,
        "passes over the tensor": passes,
        "seconds": limit,
        "ours over the limit": ours / limit,
    }


def _bars(report: Report) -> list[Bar]:
    small, big = in_words(SMALL), in_words(BIG)
    median = report.median
    ours_small, ours_big = median(OURS, small, "mpi"), median(OURS, big, "mpi")
    keras_small, keras_big = median(KERAS_LOCAL, small), median(KERAS_LOCAL, big)
    sync_small = median(KERAS_SYNC, small)
    return [
        Bar(f"{small}, mpi, of Keras local", ours_small / keras_small, 0.35, True),
        Bar(f"{small}, mpi, faster than Keras synchronized", sync_small / ours_small, 40, False),
        Bar(f"{big}, mpi, of Keras local", ours_big / keras_big, 0.22, True),
        Bar(
            f"{small}, tf, faster than Keras synchronized",
            sync_small / median(OURS, small, "tf"),
            3.3,
            False,
        ),
        Bar(
            f"{small}, horovod under horovodrun, faster than Horovod's defaults",
            median(DEFAULTS, small, "horovodrun, defaults")
            / median(OURS, small, "horovod over MPI"),
            5,
            False,
        ),
        Bar(
            f"{small}, horovod over Gloo, of Keras local",
            median(OURS, small, "horovod over Gloo")
            / median(KERAS_LOCAL, small, "horovod over Gloo"),
            1.0,
            True,
        ),
    ]


if __name__ == "__main__":
    main()
