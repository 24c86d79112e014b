"""Reads runs from their journals alone: from any process, and after any crash.

The live table applies the same events as they occur.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import UnknownRunError
from launcher.runs import layout
from launcher.runs.layout import run_directories
from launcher.runs.processes import ProcessIdentity

_STAMP = re.compile(r"-\d{8}-\d{6}-[0-9a-f]{4}$")  # what RunWriter.create adds to the job's name
_ENDED = {"succeeded", "failed", "stopped", "lost"}


@dataclass
class RankStatus:
    """One rank in the newest attempt, as `status` and the live table show it."""

    host: str = ""
    state: str = "starting"
    step: int | None = None
    pid: int | None = None
    started: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass
class RunState:
    """A run by its events.

    `state` is starting, running, restarting, stopping, or final: succeeded, failed, stopped, lost
    (its launcher was killed and recorded no result).
    """

    id: str = ""
    directory: str = ""
    backend: str = ""
    command: list[str] = field(default_factory=list)
    state: str = "starting"
    began: float = 0.0
    latest: float = 0.0
    attempt: int = 0
    checkpoint: int | None = None
    exit_code: int | None = None
    cause: dict[str, Any] | None = None
    ranks: dict[int, RankStatus] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.state in _ENDED

    @property
    def seconds(self) -> float:
        """How long it has run: up to now, or up to its last event."""
        if not self.began:
            return 0.0
        return (self.latest if self.ended else time.time()) - self.began

    def apply(self, event: Mapping[str, Any]) -> None:
        """Applies one event of the journal; unknown ones are ignored."""
        self.latest = event["time"]
        take = getattr(self, f"_on_{event['event']}", None)
        if take is not None:
            take(event)

    def _on_run(self, event: Mapping[str, Any]) -> None:
        self.id, self.directory = event["id"], event["directory"]
        self.backend, self.command = event["backend"], event["command"]
        self.began = event["time"]
        # A run that is continued has ended before.
        self.state, self.exit_code, self.cause = "starting", None, None
        self.ranks = {rank: RankStatus() for rank in range(event["ranks"])}

    def _on_started(self, event: Mapping[str, Any]) -> None:
        self.state, self.attempt = "running", event["attempt"]
        self.ranks = {rank: RankStatus(host) for rank, host in enumerate(event["hosts"])}

    def _on_rank_up(self, event: Mapping[str, Any]) -> None:
        row = self.ranks[event["rank"]]
        row.state, row.pid, row.started = "running", event["pid"], event["started"]

    def _on_beat(self, event: Mapping[str, Any]) -> None:
        row = self.ranks[event["rank"]]
        row.state = event["phase"]
        row.step = event["step"] if event["step"] is not None else row.step
        known = {"time", "event", "attempt", "rank", "phase", "step"}
        row.numbers |= {name: value for name, value in event.items() if name not in known}

    def _on_checkpoint(self, event: Mapping[str, Any]) -> None:
        self.checkpoint = event["step"]

    def _on_rank_ended(self, event: Mapping[str, Any]) -> None:
        code = event["exit_code"]
        self.ranks[event["rank"]].state = "done" if code == 0 else f"ended ({code})"

    def _on_failed(self, event: Mapping[str, Any]) -> None:
        self.cause = dict(event)

    def _on_restarting(self, event: Mapping[str, Any]) -> None:
        self.state = "restarting"

    def _on_stopping(self, event: Mapping[str, Any]) -> None:
        self.state = "stopping"

    def _on_done(self, event: Mapping[str, Any]) -> None:
        self.state, self.exit_code = event["result"], event["exit_code"]


def read_run(directory: Path) -> RunState:
    """The state of the run recorded in `directory`."""
    run = RunState(id=directory.name, directory=str(directory))
    for event in read_journal(directory):
        run.apply(event)
    if not run.ended and launcher_of(directory) is None:
        run.state = "lost"
    return run


def launcher_of(directory: Path) -> ProcessIdentity | None:
    """The running launcher of the run, or None when it has ended; unknown for another machine."""
    with suppress(OSError, ValueError, TypeError):
        identity = ProcessIdentity(**json.loads((directory / layout.LAUNCHER).read_text()))
        return identity if identity.elsewhere or identity.process() is not None else None
    return None


def read_journal(directory: Path) -> Iterator[dict[str, Any]]:
    """Every complete event of a run, oldest first; a line truncated by a crash is skipped."""
    with suppress(OSError), open(directory / layout.JOURNAL, errors="replace") as lines:
        for line in lines:
            with suppress(json.JSONDecodeError):
                yield json.loads(line)


def read_spec(directory: Path) -> dict[str, Any]:
    """The job as it was recorded, without its secrets; empty if it cannot be read."""
    return read_json(directory / layout.SPEC) or {}


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in the file, or None if it cannot be read."""
    with suppress(OSError, json.JSONDecodeError):
        return dict(json.loads(path.read_text()))
    return None


def is_stamped(run: Path) -> bool:
    """Whether the name of the run ends with the time of its start, as RunWriter chooses it."""
    return _STAMP.search(run.name) is not None


def find_run(output: Path, name: str | None) -> Path:
    """The directory of the run with this id, the newest run of the job with this name, the only
    run whose id starts with it, or the newest of all for None.

    Raises UnknownRunError.
    """
    runs = run_directories(output)
    if name is None:
        if not runs:
            raise UnknownRunError(f"no runs in {output}; start one: launcher run -np 2 -- COMMAND")
        return runs[-1]
    for found in (
        [run for run in runs if run.name == name],
        [run for run in runs if _STAMP.sub("", run.name) == name][-1:],
        [run for run in runs if run.name.startswith(name)],
    ):
        if len(found) == 1:
            return found[0]
    known = ", ".join(run.name for run in runs[-5:]) or "none"
    problem = "more than one run starts" if found else "no run starts"
    raise UnknownRunError(f"{problem} with {name!r} in {output}. The newest: {known}")
