"""The status of a job: what Slurm says of it, and what its launcher has recorded."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from launcher.errors import UnknownRunError
from launcher.runs import layout
from launcher.runs.reader import RunState, is_stamped, read_run, read_spec
from launcher.supervision.causes import Cause
from launcher.targets.base import JobStatus
from launcher.targets.slurm import queue, reasons
from launcher.targets.slurm.queue import QueuedJob
from launcher.terminal.table import render
from launcher.terminal.words import cause_lines

_OF_A_JOB = re.compile(r"(?P<name>.+)-(?P<id>[1-9][0-9]*)")  # a run directory


class SlurmStatus(JobStatus):
    """`queued` is None once Slurm has forgotten the job, `run` before its launcher has started."""

    def __init__(
        self, number: int, name: str, queued: QueuedJob | None, run: RunState | None
    ) -> None:
        self.id, self.name, self.queued, self._run = number, name, queued, run
        self.state = self._state()

    @property
    def ended(self) -> bool:
        """Also if the job waits for what never happens."""
        return self.state in {"succeeded", "stopped", "failed", "lost", "blocked"}

    @property
    def exit_code(self) -> int:
        if self.state == "stopped":
            return 143
        if self.state in {"failed", "lost", "blocked"}:
            return 2 if self.cause is not None and self.cause["class"] == "bad config" else 1
        return 0

    @property
    def cause(self) -> dict[str, Any] | None:
        """Why the job failed: as its launcher has recorded it, else as Slurm says."""
        if self.state in {"succeeded", "stopped"}:
            return None
        by_slurm = None if self.queued is None else reasons.cause(self.queued)
        recorded = None if self._run is None else self._run.cause
        decides = self._run is not None and self._run.state == "failed"
        if recorded is not None and (decides or by_slurm is None):
            return recorded
        if by_slurm is None and self.state == "lost":
            text = "Slurm has ended the job, and its launcher has recorded no result"
            by_slurm = Cause("error", text, hint=f"sacct --jobs={self.id}")
        return None if by_slurm is None else by_slurm.as_json()

    def summary(self) -> str:
        parts = [f"{self.name} (Slurm job {self.id}): {self.state}"]
        if self.queued is not None:
            if self.state == "queued":
                parts.append(reasons.waiting(self.queued))
            elif self.queued.node_list:
                parts.append(f"on {self.queued.node_list}")
            if self.queued.restarts:
                parts.append(f"queued again: {self.queued.restarts}")
        return ", ".join(parts)

    def renderable(self) -> RenderableType:
        shown: list[RenderableType] = [Text(self.summary())]
        if self._run is not None and self.state != "queued":
            spec = read_spec(Path(self._run.directory))
            shown.append(render(self._run, spec.get("restart", {}).get("max_restarts"), None))
        if self.cause is not None:
            shown.append(Text("\n".join(cause_lines(self.cause, None)), style="red"))
        return Group(*shown)

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state,
            "exit_code": self.exit_code,
            "cause": self.cause,
            "slurm": None if self.queued is None else dataclasses.asdict(self.queued),
            "run": None if self._run is None else dataclasses.asdict(self._run),
        }

    def row(self) -> Mapping[str, str]:
        job = self.queued
        waits = reasons.waiting(job) if job is not None and self.state == "queued" else ""
        return {
            "job": self.name,
            "id": str(self.id),
            "state": self.state,
            "partition": job.partition if job else "",
            "nodes": (job.node_list or str(job.nodes)) if job else "",
            "submitted": job.submitted if job else "",
            "cause": self.cause["class"] if self.cause else waits,
        }

    def row_as_json(self) -> dict[str, Any]:
        return {**self.as_json(), "run": None if self._run is None else self._run.directory}

    def _state(self) -> str:
        if self.queued is not None:
            return reasons.state_of(self.queued)
        assert self._run is not None
        # The journal ends early if the launcher was killed together with its node.
        return self._run.state if self._run.ended else "lost"


def find(output: Path, name: str | None, no_jobs: str) -> SlurmStatus:
    """The job of this name or number, or the newest one. Raises UnknownRunError."""
    found = [
        known
        for known in _known(output)
        if name is None or name in {known.name, str(known.id), f"{known.name}-{known.id}"}
    ]
    if not found:
        raise UnknownRunError(
            no_jobs
            if name is None
            else f"no job {name!r} of yours in Slurm's queue, nor a record of one in {output}; "
            "see: launcher list --target slurm, and --output"
        )
    return found[-1].read()


def jobs(output: Path) -> list[SlurmStatus]:
    """Those in the queue and those with a run in `output`, by number."""
    return [known.read() for known in _known(output)]


@dataclass(frozen=True)
class _Known:
    """A job in the queue, with a run, or both."""

    id: int
    name: str
    queued: QueuedJob | None
    run: Path | None

    def read(self) -> SlurmStatus:
        run = None if self.run is None else read_run(self.run)
        return SlurmStatus(self.id, self.name, self.queued, run)


def _known(output: Path) -> list[_Known]:
    known = {job.id: _Known(job.id, job.name, job, None) for job in queue.jobs() if job.ours}
    for run in layout.run_directories(output):
        match = _OF_A_JOB.fullmatch(run.name)
        if match is None or is_stamped(run):
            continue
        number, name = int(match["id"]), match["name"]
        queued = known[number].queued if number in known else None
        # Slurm may have counted from the start again.
        if queued is None or queued.name == name:
            known[number] = _Known(number, name, queued, run)
    return sorted(known.values(), key=lambda one: one.id)
