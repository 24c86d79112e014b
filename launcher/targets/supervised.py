"""Targets whose ranks this launcher starts and supervises itself: each job has a run directory.

The directory is all that status, logs, list and cancel need, from any process and after a crash.
"""

import dataclasses
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from rich.console import Group, RenderableType
from rich.text import Text

from launcher.errors import LauncherError, UsageError
from launcher.placement.backends import choose_backend
from launcher.runs import layout
from launcher.runs.logs import LogReader
from launcher.runs.processes import kill_processes_of
from launcher.runs.reader import RunState, find_run, launcher_of, read_run, read_spec
from launcher.spec import JobSpec, Metrics
from launcher.supervision.run import View, supervise
from launcher.supervision.stop import StopRequests
from launcher.supervision.supervisor import Launchable
from launcher.targets import background
from launcher.targets.base import JobStatus, LogQuery, Target
from launcher.terminal.table import render
from launcher.terminal.words import cause_lines, duration

_POLL_SECONDS = 1.0
_SECONDS_BETWEEN_LINES = 0.3
_CLOSING_SECONDS = 10.0  # for teardown after the time to save


class SupervisedTarget(Target):
    """Names are ids of runs, prefixes of ids, or names of jobs, which mean the newest run."""

    def flags(self) -> str:
        return self.where.flags("output")  # the default target of a verb

    def default_backend(self, ranks: int) -> tuple[str, str]:
        return choose_backend(ranks)

    @abstractmethod
    def job(self, spec: JobSpec) -> Launchable:
        """The job for the supervisor."""

    def check(self, spec: JobSpec) -> None:
        self.job(spec).check()

    def run(self, spec: JobSpec, stop: StopRequests, view: Callable[[], View]) -> int:
        return supervise(self.job(spec), stop, view).exit_code

    def submit(self, spec: JobSpec) -> tuple[str, str]:
        self.check(spec)
        run = background.start(spec)
        return run.name, f"{run.name} is running, recorded in {run}"

    def describe(self, name: str | None) -> JobStatus:
        return RunStatus(read_run(find_run(self.where.output, name)))

    def follow(self, name: str | None) -> Iterator[JobStatus]:
        directory = find_run(self.where.output, name)
        while True:
            status = RunStatus(read_run(directory))
            yield status
            if status.ended:
                return
            time.sleep(_POLL_SECONDS)

    def logs(self, name: str | None, query: LogQuery) -> Iterator[str]:
        query.refuse(
            "worker", "expected none: on this target each rank has its own log; use --rank"
        )
        directory = find_run(self.where.output, name)
        run = read_run(directory)
        if query.rank is not None and query.rank not in run.ranks:
            raise UsageError(f"--rank: expected 0 to {len(run.ranks) - 1}. Received: {query.rank}")
        first = run.attempt if query.attempt is None else query.attempt
        if not layout.logs_directory(directory, first).is_dir() and not query.follow:
            raise UsageError(f"no logs of attempt {first} in {directory}")
        readers: dict[Path, LogReader] = {}
        while True:
            run = read_run(directory)
            last = run.attempt if query.follow and query.attempt is None else first
            for path in layout.logs(directory, range(first, last + 1), query.rank):
                reader = readers.setdefault(path, LogReader(path))
                yield from (f"[{layout.log_label(path)}] {line}" for line in reader.lines())
            if run.ended or not query.follow:
                return
            time.sleep(_SECONDS_BETWEEN_LINES)

    def cancel(self, name: str | None, now: bool) -> str:
        directory = find_run(self.where.output, name)
        launcher = launcher_of(directory)
        if launcher is not None and launcher.elsewhere:
            raise LauncherError(
                f"{directory.name} is {read_run(directory).state} on {launcher.host}; run launcher "
                "cancel there, or with the --target it was submitted to"
            )
        process = launcher.process() if launcher is not None else None
        if process is None:
            left = kill_processes_of(directory)
            ended = f"killed {len(left)} leftover processes" if left else "no process is left"
            return f"{directory.name}: {read_run(directory).state}; {ended}"
        _terminate(process, directory)
        if now:
            time.sleep(0.2)  # two signals at once would count as one
            _terminate(process, directory)
        patience = read_spec(directory).get("save_timeout", 30.0) + _CLOSING_SECONDS
        limit = time.monotonic() + patience
        while launcher is not None and launcher.process() is not None:
            if time.monotonic() > limit:
                raise LauncherError(f"{directory.name} has not ended; try: launcher cancel --now")
            time.sleep(0.1)
        return f"{directory.name}: {read_run(directory).state}"

    def list(self) -> list[JobStatus]:
        return [RunStatus(read_run(run)) for run in layout.run_directories(self.where.output)]

    def no_jobs_message(self) -> str:
        return f"no runs in {self.where.output}; start one: launcher run -np 2 -- COMMAND"


class RunStatus(JobStatus):
    """The status of a run, from its journal."""

    def __init__(self, run: RunState) -> None:
        self._run = run
        self.name, self.state = run.id, run.state

    @property
    def ended(self) -> bool:
        return self._run.ended

    @property
    def exit_code(self) -> int:
        if self._run.exit_code is not None:
            return self._run.exit_code
        return 1 if self.state == "lost" else 0

    def summary(self) -> str:
        return f"{self.name}: {self.state}, restarts: {self._run.attempt}"

    def renderable(self) -> RenderableType:
        run = self._run
        spec = read_spec(Path(run.directory))
        metrics = Metrics(**spec["metrics"]) if spec.get("metrics") else None
        parts = [render(run, spec.get("restart", {}).get("max_restarts"), metrics)]
        if run.cause is not None:
            words = "\n".join(cause_lines(run.cause, None))
            parts.append(Text(words, style="red" if self.state == "failed" else "yellow"))
        if self.state == "lost":
            parts.append(Text("its launcher was killed; its ranks ended with it", style="red"))
        return Group(*parts)

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self._run), "seconds": round(self._run.seconds, 1)}

    def row(self) -> Mapping[str, str]:
        run = self._run
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.began)) if run.began else ""
        return {
            "run": run.id,
            "state": run.state,
            "began": began,
            "took": duration(run.seconds),
            "ranks": str(len(run.ranks)),
            "restarts": str(run.attempt),
            "cause": run.cause["class"] if run.cause else "",
        }

    def row_as_json(self) -> dict[str, Any]:
        run = self._run
        return {
            "id": run.id,
            "state": run.state,
            "began": run.began,
            "seconds": round(run.seconds, 1),
            "ranks": len(run.ranks),
            "restarts": run.attempt,
            "exit_code": run.exit_code,
            "cause": run.cause["class"] if run.cause else None,
        }


def _terminate(launcher: psutil.Process, directory: Path) -> None:
    try:
        launcher.terminate()
    except psutil.NoSuchProcess:
        pass  # it has ended in the meantime
    except psutil.AccessDenied:
        raise LauncherError(
            f"{directory.name} belongs to another user; run launcher cancel as that user"
        ) from None
