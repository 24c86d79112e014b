"""Runs one job from its first attempt to its result: watches, explains, restarts or gives up."""

import select
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from launcher.agent.plan import Plan
from launcher.errors import HostError, UsageError
from launcher.runs.events import Event, Kind, Observer
from launcher.runs.processes import RUN_DIRECTORY, kill_processes_of
from launcher.runs.writer import RunWriter
from launcher.spec import JobSpec
from launcher.supervision.attempt import Attempt
from launcher.supervision.causes import Cause, Exit, first_cause, is_peer_noise
from launcher.supervision.departures import SilenceWatch, left_first, left_in_mid_training
from launcher.supervision.hang import HangWatch
from launcher.supervision.restarts import wait_seconds, worth_a_restart
from launcher.supervision.stop import StopRequests

_TURN_SECONDS = 0.2
_SETTLE_SECONDS = 0.2  # exits of the same moment are looked at together
_NOISE_SETTLE_SECONDS = 0.8  # only ranks that failed because of another have ended yet
_STACK_SECONDS = 1.0  # for the ranks to write their stacks before they are ended
_EARLY_EXIT_SECONDS = 3.0


class Launchable(Protocol):
    """A job whose ranks the launcher starts and watches itself."""

    spec: JobSpec

    def check(self) -> None:
        """Looks, within seconds, whether the job can start. Raises LauncherError if not."""

    def attempt(self, environment: Mapping[str, str]) -> AbstractContextManager[Plan]:
        """Opens what one attempt needs (ports, a rendezvous server) and gives its plan.

        `environment` comes from the supervisor, for every rank. May be called again after the
        context is left. Raises LauncherError when something cannot be opened.
        """


Outcome = Literal["succeeded", "failed", "stopped"]


@dataclass(frozen=True)
class Result:
    """How the job ended. `exit_code` is the launcher's own."""

    outcome: Outcome
    exit_code: int
    restarts: int
    cause: Cause | None = None


class Supervisor:
    """Runs one job; `observers` receive every event, the writer of the run first."""

    def __init__(self, job: Launchable, record: RunWriter, observers: Sequence[Observer]) -> None:
        self._job = job
        self._spec = job.spec
        self._record = record
        self._observers: list[Observer] = [record, *observers]
        self._number = 0
        self._fenced_until = 0.0
        self._left_behind: list[str] = []

    def run(self, stop: StopRequests) -> Result:
        """Attempts the job until it succeeds, may not be tried again, or is told to stop."""
        began = time.monotonic()
        self._tell(
            "run",
            id=self._record.id,
            directory=str(self._record.directory),
            ranks=self._spec.ranks,
            backend=self._spec.backend,
            command=list(self._spec.command),
        )
        result = self._attempts(stop)
        details: dict[str, Any] = {"result": result.outcome, "exit_code": result.exit_code}
        details |= {"restarts": result.restarts, "seconds": round(time.monotonic() - began, 2)}
        if result.cause is not None:
            details["cause"] = {"rank": result.cause.rank, **result.cause.as_json()}
        self._tell("done", **details)
        return result

    def _attempts(self, stop: StopRequests) -> Result:
        while True:
            cause = self._try_once(stop)
            if cause is not None and not stop.requested():
                self._tell("failed", cause.rank, **cause.as_json())
            while self._left_behind:
                self._tell(
                    "warning", text=f"ended a process left behind: {self._left_behind.pop()}"
                )
            if stop.requested():
                return Result("stopped", stop.exit_code, self._number, cause)
            if cause is None:
                return Result("succeeded", 0, self._number)
            if not worth_a_restart(self._spec.restart, cause, self._number):
                code = 2 if cause.kind == "bad config" else 1
                return Result("failed", code, self._number, cause)
            seconds = max(
                wait_seconds(self._spec.restart, self._number),
                self._fenced_until - time.monotonic(),
            )
            self._tell("restarting", next=self._number + 1, seconds=round(seconds, 1))
            self._pause(stop, seconds)
            if stop.requested():
                return Result("stopped", stop.exit_code, self._number, cause)
            self._number += 1

    def _try_once(self, stop: StopRequests) -> Cause | None:
        """One attempt; returns why it failed, or None if every rank ended with 0."""
        environment = {
            RUN_DIRECTORY: str(self._record.directory),
            "LAUNCHER_ATTEMPT": str(self._number),
            "LAUNCHER_WORLD_SIZE": str(self._spec.ranks),
        }
        try:
            if self._number > 0:
                self._job.check()  # a host may have gone in the meantime
            with self._job.attempt(environment) as plan:
                self._tell("started", hosts=list(plan.hosts))
                silence = self._spec.silence_timeout
                attempt = Attempt(self._number, plan, silence, self._emit)
                try:
                    attempt.start()
                    attempt.wake_on(stop.descriptor)
                    return self._watch(attempt, stop)
                finally:
                    attempt.close()
                    self._fence(attempt)
                    self._left_behind = kill_processes_of(self._record.directory)
        except (UsageError, OSError) as error:
            return Cause("bad config", str(error))
        except HostError as error:
            return Cause("lost host", str(error))

    def _watch(self, attempt: Attempt, stop: StopRequests) -> Cause | None:
        hang = HangWatch(self._spec.hang_timeout, time.monotonic())
        silence = SilenceWatch(self._spec.exit_timeout, time.monotonic())
        cause: Cause | None = None
        failing_since: float | None = None
        stops_seen = 0
        while not attempt.over:
            attempt.turn(_TURN_SECONDS)
            for complaint in self._record.take_complaints():
                self._tell("warning", text=complaint)
            now = time.monotonic()
            if stop.count > stops_seen:
                stop.drain()
                attempt.end(self._spec.save_timeout if stop.count == 1 else 0.0)
                name = stop.signal.name if stop.signal else ""
                self._tell("stopping", signal=name, at_once=stop.count > 1)
                stops_seen = stop.count
            if attempt.ending:
                continue
            failed = attempt.failed
            silent = silence.silent(attempt.states, now, attempt.output_lines)
            if failed or left_in_mid_training(attempt.states):
                failing_since = failing_since or now
                if now - failing_since > _patience(failed):
                    attempt.end(max(0.0, self._spec.grace - (now - failing_since)))
            elif silent or hang.hangs(attempt.states, now):
                attempt.dump_stacks()
                _listen(attempt, _STACK_SECONDS)
                cause = (silence if silent else hang).cause(attempt.states)
                attempt.end(self._spec.grace)
            elif notice := silence.notice(attempt.states, now):
                self._tell("warning", text=notice)
        return cause or _cause_of(attempt)

    def _fence(self, attempt: Attempt) -> None:
        """A host that was cut off ends its ranks by itself; until then no new attempt may write."""
        spec = self._spec
        gone = attempt.last_heard + spec.silence_timeout + spec.grace + 1.0
        self._fenced_until = max(self._fenced_until, gone)

    def _pause(self, stop: StopRequests, seconds: float) -> None:
        select.select([stop.descriptor], [], [], max(0.0, seconds))

    def _tell(self, kind: Kind, rank: int | None = None, **details: Any) -> None:
        self._emit(Event(kind, self._number, rank, details))

    def _emit(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)


def _patience(failed: Sequence[Exit]) -> float:
    if all(ended.lingering for ended in failed):  # also with none
        return _EARLY_EXIT_SECONDS
    noise = all(ended.asked or is_peer_noise(ended) for ended in failed)
    return _NOISE_SETTLE_SECONDS if noise else _SETTLE_SECONDS


def _listen(attempt: Attempt, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not attempt.over and time.monotonic() < until:
        attempt.turn(_TURN_SECONDS)


def _cause_of(attempt: Attempt) -> Cause | None:
    failed = attempt.failed
    if not failed:
        return None
    return left_first(attempt.states, failed) or first_cause(failed)
