"""Whole commands: from the command to the first step, and the throughput of the training.

python -m benchmarks.startup [--toy] [--output FILE]

Two ranks, started in turns by mpirun and by `launcher run` with nothing set; and a Keras program
without syncbn or any communication, of the same network, under mpirun.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.conductor import Conductor, Plan
from benchmarks.harness.results import Bar, Report, Timing, arguments, finish
from benchmarks.harness.turns import Contender, busy_seconds, take_turns
from launcher.placement import backends

MPIRUN, LAUNCHER = "mpirun -np 2 python -m launcher.train", "launcher run -np 2 -- ..."
KERAS = "mpirun -np 2 python plain_keras.py"
TRACING_OURS, TRACING_KERAS = "syncbn", "Keras local"
STARTING, TRACING = "from the command to the first step", "tracing 50 layers"
_SECONDS = 300
_REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class Runs:
    """What the runs of one command took.

    Attributes:
        first_step: Seconds from the command to the end of the first step.
        parts: Seconds by part of the start-up of a rank.
        rates: Images per second, over both ranks.
        others: The largest share of all cores that other programs used during a run.
    """

    first_step: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    others: float = 0.0

    def add(self, started: float, summary: dict[str, Any]) -> None:
        """Adds a run of launcher.train, from its summary.json."""
        startup = summary["startup"]
        self.first_step.append(startup["began"] + startup["total"] - started)
        self.rates.append(summary["images_per_second"])
        before = {"before the process": startup["began"] - started}
        for part, seconds in (before | startup["seconds"]).items():
            self.parts.setdefault(part, []).append(seconds)


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__).parse_args(argv)
    finish(measure(options.toy), options.output)


def measure(toy: bool) -> Report:
    """Runs the commands in turns, and traces graphs."""
    rounds, epochs = (1, 1) if toy else (5, 8)
    report = Report("startup", {"ranks": 2, "epochs": epochs})
    runs = {name: Runs() for name in (MPIRUN, LAUNCHER, KERAS)}
    for _ in range(rounds):
        for name, of in runs.items():
            _run(name, of, epochs)
    for name, of in runs.items():
        report.timings.append(Timing.of(name, "mpi", STARTING, of.first_step, of.others))
    _measure_tracing(report, toy)
    report.details = {
        "parts": {
            name: {part: statistics.median(seconds) for part, seconds in of.parts.items()}
            for name, of in runs.items()
            if of.parts
        },
        "images per second": {
            name: statistics.median(of.rates) for name, of in runs.items() if of.rates
        },
    }
    if not toy:
        rates = report.details["images per second"]
        report.bars = [
            Bar(
                "images/s of launcher run with nothing set, of mpirun",
                rates[LAUNCHER] / rates[MPIRUN],
                0.9,
                at_most=False,
            ),
            Bar(
                "command to first step, of a plain Keras program",
                report.median(MPIRUN, STARTING) / report.median(KERAS, STARTING),
                1.1,
                at_most=True,
            ),
            Bar(
                "tracing 50 layers, of Keras local",
                report.median(TRACING_OURS, TRACING) / report.median(TRACING_KERAS, TRACING),
                1.2,
                at_most=True,
            ),
        ]
    return report


def _run(name: str, runs: Runs, epochs: int) -> None:
    """Runs one command to its end, in an empty directory."""
    mpirun = [backends.find_mpirun() or "mpirun", "-np", "2"]
    train = [sys.executable, "-m", "launcher.train", "--output", "out", "--epochs", str(epochs)]
    command = {
        MPIRUN: [*mpirun, *train],
        LAUNCHER: [sys.executable, "-m", "launcher", "run", "-np", "2", "--", *train],
        KERAS: [*mpirun, sys.executable, "-m", "benchmarks.plain_keras"],
    }[name]
    variables = os.environ | backends.mpi_environment()
    variables |= {"PYTHONPATH": str(_REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as directory:
        started, busy, own = time.time(), busy_seconds(), _seconds_of_children()
        done = subprocess.run(
            command,
            cwd=directory,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
        others = busy_seconds() - busy - (_seconds_of_children() - own)
        share = max(0.0, others) / ((time.time() - started) * (os.cpu_count() or 1))
        runs.others = max(runs.others, share)
        if name == KERAS:
            ends = [float(line.split()[-1]) for line in done.stdout.splitlines() if "first" in line]
            runs.first_step.append(max(ends) - started)
        else:
            runs.add(started, json.loads(Path(directory, "out", "summary.json").read_text()))


def _seconds_of_children() -> float:
    """The processor time of all processes that this one has waited for, and of their children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _measure_tracing(report: Report, toy: bool) -> None:
    rounds, steps, depth = (1, 1, 2) if toy else (5, 1, 50)
    plan = Plan("mpi", "mpirun", "mpi")
    with Conductor("benchmarks.tracing_steps") as conductor:
        jobs = conductor.start([plan])
        contenders = [Contender(key, jobs["mpi"], {"depth": depth}) for key in ("ours", "keras")]
        for words, taken in zip(
            (TRACING_OURS, TRACING_KERAS),
            take_turns(contenders, rounds, steps, toy=toy),
            strict=True,
        ):
            report.timings.append(Timing.of(words, "mpi", TRACING, *taken))


if __name__ == "__main__":
    main()
