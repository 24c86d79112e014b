"""Writes the directory of a run: the job, a journal of events, logs and the result.

Any process may read it, during the run and after a crash; only the run's launcher writes to it.
"""

import os
import secrets
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from launcher import strict_json
from launcher.atomic import replace_json
from launcher.errors import LauncherError
from launcher.runs import layout
from launcher.runs.events import Event
from launcher.runs.logs import RankLog, append_whole
from launcher.runs.processes import ProcessIdentity
from launcher.runs.reader import read_journal
from launcher.spec import JobSpec
from launcher.spec.secrets import without_secrets

_SECONDS_BETWEEN_STEPS = 1.0  # the journal records at most one step per second and rank
# The end of a run must be recorded on a full disk too: space for it is reserved from the start.
_FINAL_EVENTS = {"failed", "done"}
_RESERVE_BYTES = 64 * 1024


class RunWriter:
    """The directory of one run: an observer of events that records them."""

    def __init__(self, directory: Path, first_attempt: int = 0) -> None:
        self.directory = directory
        self.id = directory.name
        self.first_attempt = first_attempt
        self._reserve = directory / layout.RESERVE
        self._descriptor: int | None = None
        self._journaled: dict[int, float] = {}
        self._phases: dict[int, str] = {}
        self._logs: dict[tuple[int, int | None], RankLog] = {}
        self._warnings: list[str] = []
        self._warned: set[str] = set()

    @classmethod
    def create(cls, spec: JobSpec, run: str | None = None) -> "RunWriter":
        """Creates the directory and writes the job into it. Raises LauncherError if it cannot.

        `run` is its name, chosen if None. An existing run of that name is continued: its next
        attempt is a restart.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name = run or f"{spec.name}-{stamp}-{secrets.token_hex(2)}"
        directory = spec.output.absolute() / name
        record = cls(directory, 0 if run is None else _attempts(directory))
        try:
            layout.logs_directory(directory).mkdir(parents=True, exist_ok=run is not None)
            replace_json(directory / layout.SPEC, without_secrets(spec), durable=False)
            launcher = asdict(ProcessIdentity.of(os.getpid()))
            replace_json(directory / layout.LAUNCHER, launcher, durable=False)
            record._reserve.write_bytes(bytes(_RESERVE_BYTES))
            record._open()
        except OSError as error:
            raise LauncherError(
                f"the run cannot be recorded in {directory}: {error.strerror}; "
                "choose another directory with --output"
            ) from None
        return record

    def __call__(self, event: Event) -> None:
        if event.kind == "output":
            self._log(event)
        elif event.kind != "beat" or self._is_worth_recording(event):
            self._append(event)
        if event.kind == "done":
            with suppress(OSError):
                replace_json(self.directory / layout.RESULT, event.as_json(), durable=False)

    def take_warnings(self) -> list[str]:
        """What could not be written since the last call, and why; each problem once."""
        warnings, self._warnings = self._warnings, []
        return warnings

    def log_path(self, attempt: int, rank: int | None) -> Path:
        return layout.log_path(self.directory, attempt, rank)

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            with suppress(OSError):
                self._reserve.unlink(missing_ok=True)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self.directory / layout.JOURNAL, flags, 0o644)

    def _append(self, event: Event) -> None:
        line = strict_json.dumps(event.as_json()).encode() + b"\n"
        if self._descriptor is None:
            return
        try:
            try:
                append_whole(self._descriptor, line)
            except OSError:
                if event.kind not in _FINAL_EVENTS:
                    raise
                self._reserve.unlink(missing_ok=True)
                append_whole(self._descriptor, line)
            if event.kind in _FINAL_EVENTS:
                os.fsync(self._descriptor)
        except OSError as error:
            self._warn_once("the journal", error)

    def _log(self, event: Event) -> None:
        key = (event.attempt, event.rank)
        log = self._logs.get(key)
        if log is None:
            for old in [old for old in self._logs if old[0] < event.attempt]:
                self._logs.pop(old).close()
            path = self.log_path(*key)
            with suppress(OSError):
                path.parent.mkdir(exist_ok=True)
            log = self._logs[key] = RankLog(path)
        error = log.write(event.details["text"])
        if error is not None:
            self._warn_once("the logs", error)

    def _warn_once(self, what: str, error: OSError) -> None:
        text = f"{what} in {self.directory} cannot be written: {error.strerror}; the job continues"
        # Once per run: the warning is itself an event, which cannot be written either.
        if text not in self._warned:
            self._warned.add(text)
            self._warnings.append(text)

    def _is_worth_recording(self, event: Event) -> bool:
        rank = event.rank or 0
        phase_is_new = self._phases.get(rank) != event.details["phase"]
        if phase_is_new or event.time - self._journaled.get(rank, 0) >= _SECONDS_BETWEEN_STEPS:
            self._phases[rank] = event.details["phase"]
            self._journaled[rank] = event.time
            return True
        return False


def _attempts(directory: Path) -> int:
    """How many attempts the run has begun."""
    begun = (event["attempt"] for event in read_journal(directory) if event["event"] == "started")
    return max(begun, default=-1) + 1
