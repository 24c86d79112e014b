"""The time of one small all-reduce, and the start-up time of programs.

python -m benchmarks.latency [--toy] [--output FILE]

The vectors are float64, like the statistics: a layer of 32 channels sends 130 values forward, one
of 256 channels 1,026, one of 2,048 channels 8,194.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.harness.conductor import Conductor, Plan
from benchmarks.harness.results import Bar, Report, Timing, arguments, finish
from benchmarks.harness.turns import Contender, take_turns

VALUES = (130, 1026, 8194)
RAW, OURS = "raw MPI", "syncbn in a tf.function"
_CHAIN = 50
_ENTRIES = (
    (RAW, "raw MPI", Plan("mpi", "mpirun", "mpi")),
    (OURS, "ours", Plan("mpi", "mpirun", "mpi")),
    (OURS, "ours", Plan("tf", "cluster", "tf")),
    (OURS, "ours", Plan("horovod over MPI", "horovodrun", "horovod", stops=True)),
    (OURS, "ours", Plan("horovod over Gloo", "gloo", "horovod", stops=True)),
    (
        OURS,
        "ours",
        Plan("horovod over Gloo, TCP", "gloo", "horovod", {"SYNCBN_EXCHANGE": "tcp"}, stops=True),
    ),
    (
        "Horovod with default settings, in a tf.function",
        "ours",
        Plan("horovodrun, defaults", "horovodrun", "horovod-defaults", stops=True),
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__).parse_args(argv)
    finish(measure(options.toy), options.output)


def measure(toy: bool) -> Report:
    """Measures the time of one all-reduce: that of a chain divided by its length."""
    rounds, steps, chain, values = (1, 2, 3, VALUES[:1]) if toy else (6, 5, _CHAIN, VALUES)
    entries = [e for e in _ENTRIES if not toy or e[2].name == "mpi"]
    report = Report("latency", {"ranks": 2, "intra-op threads per rank": 1, "chain": chain})
    with Conductor("benchmarks.latency_steps") as conductor:
        jobs = conductor.start(list({plan.name: plan for _, _, plan in entries}.values()))
        for count in values:
            case = {"values": count, "chain": chain}
            contenders = [Contender(name, jobs[plan.name], case) for _, name, plan in entries]
            for (words, _, plan), taken in zip(
                entries, take_turns(contenders, rounds, steps, toy=toy), strict=True
            ):
                each = [second / chain for second in taken.seconds]
                report.timings.append(
                    Timing.of(words, plan.name, in_words(count), each, taken.others)
                )
    case_in_words = in_words(values[-1 if toy else 1])
    over = report.median(OURS, case_in_words, "mpi") - report.median(RAW, case_in_words)
    report.bars = [
        Bar("one all-reduce in a tf.function, mpi, over raw MPI", over * 1e6, 25, True, "µs"),
        *_direct(report, toy),
        *_starting(1 if toy else 7),
    ]
    return report


def _direct(report: Report, toy: bool) -> list[Bar]:
    """The bar of the direct exchange; the small benchmark has no job over Gloo."""
    if toy:
        return []
    seconds = report.median(OURS, in_words(VALUES[1]), "horovod over Gloo")
    return [Bar(f"{in_words(VALUES[1])}, horovod over Gloo", seconds * 1e6, 30, True, "µs")]


def in_words(values: int) -> str:
    return f"one all-reduce of {values} float64"


def _starting(times: int) -> list[Bar]:
    """The times of `import syncbn` and `launcher --help`: medians over new processes."""
    program = (
        "import time, tensorflow; started = time.perf_counter(); import syncbn; "
        "print(time.perf_counter() - started)"
    )
    imports, helps = [], []
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=120,
            check=True,
        )
        imports.append(float(done.stdout.split()[-1]))
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "launcher", "--help"],
            stdout=subprocess.DEVNULL,
            timeout=120,
            check=True,
        )
        helps.append(time.perf_counter() - started)
    return [
        Bar("import syncbn, over importing TensorFlow", statistics.median(imports), 0.2, True, "s"),
        Bar("python -m launcher --help", statistics.median(helps), 0.3, True, "s"),
    ]


if __name__ == "__main__":
    main()
