"""Runs several jobs concurrently and lets them take turns.

Contenders with different backends need different processes. On a shared machine two jobs that run
one after the other cannot be compared, so all are started first, and then take turns of a few
steps. A waiting job must not use a core: Horovod's threads wake up ten thousand times a second, so
its ranks are stopped (SIGSTOP) in between.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil

from benchmarks.harness import rank
from benchmarks.harness.starting import start

_START_SECONDS = 120
_ANSWER_SECONDS = 300


class BenchmarkError(Exception):
    """A rank failed or does not answer; the message has its output."""


@dataclass(frozen=True)
class Plan:
    """The specification of a job.

    Attributes:
        name: A unique name.
        launcher: Starts the ranks, one of `starting.LAUNCHERS`.
        backend: The backend of the ranks, see `rank.Service`.
        environment: Environment variables of the ranks.
        stops: Whether to stop the ranks between turns, because they use a core while idle.
    """

    name: str
    launcher: str
    backend: str
    environment: Mapping[str, str] | None = None
    stops: bool = False


class Job:
    """Ranks that execute commands."""

    def __init__(
        self, plan: Plan, log: Path, processes: list[subprocess.Popen[bytes]], ranks: int
    ) -> None:
        self.plan = plan
        self.ranks = ranks
        self._log = log
        self._processes = processes
        self._streams: list[TextIO] = []
        self._numbers: list[int] = []
        self._stopped = False

    @property
    def complete(self) -> bool:
        return len(self._streams) == self.ranks

    def joined(self, stream: TextIO, process: int) -> None:
        self._streams.append(stream)
        self._numbers.append(process)

    def check(self) -> None:
        """Raises BenchmarkError if it has ended."""
        if any(process.poll() is not None for process in self._processes):
            raise BenchmarkError(f"the job {self.plan.name} has ended:\n{self.tail()}")

    def call(self, order: str, **values: Any) -> list[Any]:
        """Sends a command to every rank, and waits for all answers."""
        self._stop(False)
        line = json.dumps({"call": order, "arguments": values}) + "\n"
        for stream in self._streams:
            stream.write(line)
            stream.flush()
        answers = [json.loads(self._read(stream)) for stream in self._streams]
        for reply in answers:
            if "error" in reply:
                raise BenchmarkError(f"{order} on {self.plan.name} failed:\n{reply['error']}")
        if self.plan.stops:
            self._stop(True)
        return [reply["value"] for reply in answers]

    @property
    def processor_seconds(self) -> float:
        """The processor time of its ranks so far, over all cores."""
        times = [psutil.Process(number).cpu_times() for number in self._numbers]
        return sum(used.user + used.system for used in times)

    def tail(self) -> str:
        """The end of the output of the ranks."""
        return self._log.read_text(errors="replace")[-3000:]

    def end(self) -> None:
        """Ends the ranks; kills remaining processes after some seconds."""
        self._stop(False)
        tree = [p for process in self._processes for p in _descendants(process.pid)]
        with suppress(BenchmarkError, OSError):
            self.call("end")
        deadline = time.monotonic() + 10
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        for left in tree:
            with suppress(psutil.NoSuchProcess):
                left.kill()
        for process in self._processes:
            process.wait()
        for stream in self._streams:
            stream.close()

    def _stop(self, stop: bool) -> None:
        if stop == self._stopped:
            return
        for number in self._numbers:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGSTOP if stop else signal.SIGCONT)
        self._stopped = stop

    def _read(self, stream: TextIO) -> str:
        line = ""
        with suppress(TimeoutError, ConnectionError):
            line = stream.readline()
        if not line:
            raise BenchmarkError(f"a rank of {self.plan.name} does not answer:\n{self.tail()}")
        return line


class Conductor:
    """Starts jobs and ends them: `with Conductor(module) as conductor`.

    Args:
        service: The module whose `Service` the ranks run.
        device: `"cpu"` or `"gpu"`.
    """

    def __init__(self, service: str, device: str = "cpu") -> None:
        self._service = service
        self._device = device
        self._jobs: list[Job] = []
        self._resources = ExitStack()

    def __enter__(self) -> "Conductor":
        self._directory = Path(self._resources.enter_context(tempfile.TemporaryDirectory()))
        self._server = self._resources.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._server.settimeout(0.5)
        # End the ranks on SIGTERM: stopped ones would otherwise remain forever.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        self._resources.callback(signal.signal, signal.SIGTERM, before)
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._jobs:
            job.end()
        self._resources.close()

    def start(self, plans: Sequence[Plan], ranks: int = 2) -> dict[str, Job]:
        """Starts jobs concurrently, and waits until all their ranks have connected."""
        jobs = {plan.name: self._start(plan, ranks) for plan in plans}
        deadline = time.monotonic() + _START_SECONDS
        while not all(job.complete for job in jobs.values()):
            with suppress(TimeoutError):
                connection, _ = self._server.accept()
                connection.settimeout(_ANSWER_SECONDS)
                stream = connection.makefile("rw")
                connection.close()  # the stream keeps the connection open
                hello = json.loads(stream.readline())
                jobs[hello["job"]].joined(stream, hello["process"])
            for job in jobs.values():
                job.check()
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"{job.plan.name} does not start:\n{job.tail()}")
        return jobs

    def _start(self, plan: Plan, ranks: int) -> Job:
        log = self._directory / plan.name.replace(" ", "-")
        log.touch()
        environment = {
            rank.ADDRESS: f"127.0.0.1:{self._server.getsockname()[1]}",
            rank.JOB: plan.name,
            rank.BACKEND: plan.backend,
            **(plan.environment or {}),
        }
        command = [sys.executable, "-m", "benchmarks.harness.rank", self._service]
        job = Job(
            plan,
            log,
            start(plan.launcher, command, ranks, environment, log, self._resources, self._device),
            ranks,
        )
        self._jobs.append(job)
        return job


def _descendants(process: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(process)
        return [top, *top.children(recursive=True)]
    return []
