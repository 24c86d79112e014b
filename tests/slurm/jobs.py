"""The jobs of one test: submitted as a user would, watched, and cancelled at its end."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from launcher.train.checkpoint import CheckpointStore
from tests.processes import THREADS
from tests.slurm.cluster import Cluster
from tests.waiting import until

QUICK = ("--time", "20", "--save-timeout", "10", "--grace", "1", "--backoff", "0.2")


class Jobs:
    """The launcher in a directory of its own; `output` is its output directory."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster, self.directory, self.output = cluster, directory, directory / "runs"
        self._running: list[subprocess.Popen[str]] = []

    def __call__(self, *words: str, seconds: float = 100) -> subprocess.CompletedProcess[str]:
        """A command of the launcher, to its end."""
        return subprocess.run(
            self._command(words),
            cwd=self.directory,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command of the launcher, in the background."""
        process = subprocess.Popen(
            self._command(words),
            cwd=self.directory,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._running.append(process)
        return process

    def submit(self, name: str, *flags: str, program: Sequence[str] | None = None) -> int:
        """Slurm's number of the new job of two nodes."""
        command = ["submit", "--target", "slurm", "-np", "2", "--name", name, *QUICK, *flags]
        done = self(*command, "--", *(program or training(epochs=3)))
        assert done.returncode == 0, done.stderr
        found = re.match(r"Slurm job (\d+)", done.stdout)
        assert found is not None, done.stdout
        return int(found[1])

    def wait(self, name: str, seconds: float = 100) -> int:
        """The exit code of a job, once it has ended."""
        return self("status", name, "--watch", "--target", "slurm", seconds=seconds).returncode

    def status(self, name: str) -> dict[str, Any]:
        done = self("status", name, "--json", "--target", "slurm")
        assert done.stdout, done.stderr
        return dict(json.loads(done.stdout))

    def log(self, name: str, number: int) -> str:
        path = self.output / f"{name}-{number}.out"
        return path.read_text() if path.exists() else ""

    def says(self, name: str, number: int, text: str, seconds: float = 60) -> None:
        """Waits for a text in the log of a job."""
        until(lambda: text in self.log(name, number), seconds, lambda: self.log(name, number))

    def trains(self, name: str, number: int, seconds: float = 60) -> None:
        """Waits until both ranks have finished a step."""

        def steps() -> bool:
            run = self.status(name)["run"]
            ranks = run["ranks"].values() if run else []
            return len(ranks) == 2 and all(rank["step"] for rank in ranks)

        until(steps, seconds, lambda: self.log(name, number))

    def processes(self, *words: str) -> list[psutil.Process]:
        """The processes of this test's jobs with all these words in their command line."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            try:
                if set(words) <= {*line} and Path(process.cwd()) == self.directory:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def weights(self, name: str, number: int) -> Sequence[np.ndarray]:
        """All variables of the last checkpoint."""
        store = CheckpointStore(self.output / f"{name}-{number}" / "checkpoints", keep=1)
        checkpoint, warnings = store.latest()
        assert checkpoint is not None, warnings
        return checkpoint.arrays

    def close(self) -> None:
        self.cluster("scancel", "--user=root", check=False)
        self.cluster("scancel", "--user=root", "--signal=KILL", check=False)
        for process in self._running:
            process.kill()
            process.communicate()
        until(lambda: not self.cluster("squeue", "--noheader"), 60)

    def _command(self, words: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "launcher", *words]

    def _environment(self) -> dict[str, str]:
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", **dict.fromkeys(THREADS, "1")}
        return {**os.environ, **quiet, **self.cluster.environment}


def training(epochs: int, batch_size: int = 64) -> list[str]:
    words = ["--dataset", "digits", "--epochs", str(epochs), "--batch-size", str(batch_size)]
    return ["python", "-m", "launcher.train", *words, "--seed", "7"]
