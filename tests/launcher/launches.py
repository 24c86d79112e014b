"""Runs the launcher itself in tests, as a user would, and keeps the figures of what happened."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.runs.layout import run_directories
from launcher.runs.reader import read_journal
from tests.jobs import TOKEN, Job, JobResult

PROGRAM = Path(__file__).with_name("rank_program.py")
FIGURES = "FAULT_FIGURES"


@dataclass
class Launch:
    """One `launcher run` of the rank program in its own directory."""

    directory: Path
    job: Job = field(init=False)

    def start(
        self,
        options: Sequence[str] = (),
        program: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> "Launch":
        """Starts the launcher; `program` replaces the rank program's own command line."""
        self.directory.mkdir(parents=True)
        self.shared.mkdir()
        self.temporary.mkdir()
        token = uuid.uuid4().hex
        variables = {**os.environ, TOKEN: token}
        variables["TMPDIR"] = str(self.temporary)
        command = [sys.executable, "-m", "launcher", "run", "-o", str(self.output), *options, "--"]
        command += program if program is not None else self.program()
        self.job = Job([], self.directory, token, 0)
        with open(self.directory / "launcher", "wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.directory,
                env={**variables, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.job.processes.append(process)
        return self

    def program(self, *arguments: str) -> list[str]:
        """The command line of the rank program."""
        return ["python", str(PROGRAM), "--shared", str(self.shared), *arguments]

    @property
    def output(self) -> Path:
        return self.directory / "runs"

    @property
    def shared(self) -> Path:
        return self.directory / "shared"

    @property
    def temporary(self) -> Path:
        """The launcher's TMPDIR: empty again once all is over."""
        return self.directory / "tmp"

    @property
    def run(self) -> Path:
        """The directory of the run. Raises IndexError before there is one."""
        return run_directories(self.output)[-1]

    @property
    def pid(self) -> int:
        """The launcher's own process id."""
        return self.job.processes[0].pid

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The journal so far, or its events of one kind."""
        with suppress(IndexError):
            events = list(read_journal(self.run))
            return [event for event in events if kind is None or event["event"] == kind]
        return []

    def wait_until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Waits for the condition. Raises AssertionError with the output if it stays false."""
        limit = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > limit:
                raise AssertionError(f"not within {seconds} s:\n{self.text()}")
            time.sleep(0.02)

    def wait_for_step(self, step: int) -> None:
        """Waits until some rank has finished the step."""
        self.wait_until(lambda: f"step {step}\n" in self.text() or self._at(step))

    def text(self) -> str:
        """All the launcher has printed up to now."""
        return (self.directory / "launcher").read_text(errors="replace")

    def finish(self, seconds: float = 40) -> JobResult:
        """Waits for the end, at most `seconds` after the start; the result must have no orphans."""
        result = self.job.wait(seconds)
        assert result.orphans == (), result.transcript()
        return result

    def fault_at(self, attempt: int = 0) -> float:
        """When the rank program ran into its fault, in seconds since the epoch."""
        return float((self.shared / f"fault-{attempt}").read_text())

    def cause(self) -> dict[str, Any]:
        """The cause of the last failure."""
        return self.events("failed")[-1]

    def _at(self, step: int) -> bool:
        return any(int(path.read_text() or 0) > step for path in self.shared.glob("at-0-*"))


def first_line(result: JobResult) -> str:
    """The launcher's first line about the failure; empty if there is none."""
    lines = [line for line in result.output.splitlines() if line.startswith("launcher: ")]
    return next((line for line in lines if " ranks, " not in line and " rank, " not in line), "")


def note(fault: str, seconds: float, result: JobResult) -> None:
    """Keeps the figures of a fault for docs/reliability.md, where FAULT_FIGURES names a file."""
    path = os.environ.get(FIGURES)
    if path is None:
        return
    line = first_line(result).removeprefix("launcher: ")
    row = {
        "fault": fault,
        "seconds": round(seconds, 1),
        "survivors": len(result.orphans),
        "exit_code": result.returncode,
        "first_line": line or "(none: the launcher is killed; `launcher status` shows: lost)",
    }
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")
