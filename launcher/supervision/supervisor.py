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
from launcher.supervision.departures import SilenceWatch, left_during_training, left_first
from launcher.supervision.hang import HangWatch
from launcher.supervision.restarts import wait_seconds, worth_a_restart
from launcher.supervision.stop import StopRequests

_POLL_SECONDS = 0.2
_SETTLE_SECONDS = 0.2  # exits within this time are judged together
_NOISE_SETTLE_SECONDS = 0.8  # so far only ranks that failed because of another have ended
_STACK_SECONDS = 1.0  # for the ranks to write their stacks before they are ended
_EARLY_EXIT_SECONDS = 3.0


class Launchable(Protocol):
    """A job whose ranks the launcher starts and watches itself."""

    spec: JobSpec

    def check(self) -> None:
        """Looks, within seconds, whether the job can start. Raises LauncherError if not."""

    def attempt(self, environment: Mapping[str, str]) -> AbstractContextManager[Plan]:
        """Opens what one attempt needs (ports, a rendezvous server) and yields its plan.

        `environment` is what the supervisor sets for every rank. May be called again after the
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
        self._first = self._number = record.first_attempt
        self._fenced_until = 0.0
        self._leftovers: list[str] = []

    def run(self, stop: StopRequests) -> Result:
        """Attempts the job until it succeeds, may not be restarted, or is asked to stop."""
        began = time.monotonic()
        self._event(
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
        self._event("done", **details)
        return result

    def _attempts(self, stop: StopRequests) -> Result:
        while True:
            cause = self._try_once(stop)
            done = self._number - self._first
            if cause is not None and not stop.requested():
                self._event("failed", cause.rank, **cause.as_json())
            while self._leftovers:
                self._event(
                    "warning", text=f"killed a leftover process of the job: {self._leftovers.pop()}"
                )
            if stop.requested():
                return Result("stopped", stop.exit_code, done, cause)
            if cause is None:
                return Result("succeeded", 0, done)
            if not worth_a_restart(self._spec.restart, cause, done):
                code = 2 if cause.kind == "bad config" else 1
                return Result("failed", code, done, cause)
            seconds = max(
                wait_seconds(self._spec.restart, done),
                self._fenced_until - time.monotonic(),
            )
            self._event("restarting", next=done + 1, seconds=round(seconds, 1))
            self._pause(stop, seconds)
            if stop.requested():
                return Result("stopped", stop.exit_code, done, cause)
            self._number += 1

    def _try_once(self, stop: StopRequests) -> Cause | None:
        """One attempt; returns why it failed, or None if every rank exited with 0."""
        environment = {
            RUN_DIRECTORY: str(self._record.directory),
            "LAUNCHER_ATTEMPT": str(self._number),
            "LAUNCHER_WORLD_SIZE": str(self._spec.ranks),
        }
        try:
            if self._number > self._first:
                self._job.check()  # a host may have become unreachable in the meantime
            with self._job.attempt(environment) as plan:
                self._event("started", hosts=list(plan.hosts))
                silence = self._spec.silence_timeout
                attempt = Attempt(self._number, plan, silence, self._emit)
                try:
                    attempt.start()
                    attempt.wake_on(stop.descriptor)
                    return self._watch(attempt, stop)
                finally:
                    attempt.close()
                    self._fence(attempt)
                    self._leftovers = kill_processes_of(self._record.directory)
        except (UsageError, OSError) as error:
            return Cause("bad config", str(error))
        except HostError as error:
            return Cause("lost host", str(error))

    def _watch(self, attempt: Attempt, stop: StopRequests) -> Cause | None:
        hang = HangWatch(self._spec.hang_timeout, time.monotonic())
        silence = SilenceWatch(self._spec.exit_timeout, time.monotonic())
        cause: Cause | None = None
        failing_since: float | None = None
        stops_handled = 0
        while not attempt.ended:
            attempt.poll(_POLL_SECONDS)
            for text in self._record.take_warnings():
                self._event("warning", text=text)
            now = time.monotonic()
            stop.drain()
            if stop.count > stops_handled:
                attempt.end(self._spec.save_timeout if stop.count == 1 else 0.0)
                name = stop.signal.name if stop.signal else ""
                self._event("stopping", signal=name, at_once=stop.count > 1)
                stops_handled = stop.count
            if attempt.ending:
                continue
            failed = attempt.failed
            silent = silence.silent(attempt.states, now, attempt.output_lines)
            if failed or left_during_training(attempt.states):
                failing_since = failing_since or now
                if now - failing_since > _patience(failed):
                    attempt.end(max(0.0, self._spec.grace - (now - failing_since)))
            elif silent or hang.hangs(attempt.states, now):
                attempt.dump_stacks()
                _poll_for(attempt, _STACK_SECONDS)
                cause = (silence if silent else hang).cause(attempt.states)
                attempt.end(self._spec.grace)
            elif warning := silence.warning(attempt.states, now):
                self._event("warning", text=warning)
        return cause or _cause_of(attempt)

    def _fence(self, attempt: Attempt) -> None:
        """An unreachable host ends its ranks itself; no new attempt may start before that."""
        spec = self._spec
        gone = attempt.last_report + spec.silence_timeout + spec.grace + 1.0
        self._fenced_until = max(self._fenced_until, gone)

    def _pause(self, stop: StopRequests, seconds: float) -> None:
        select.select([stop.descriptor], [], [], max(0.0, seconds))

    def _event(self, kind: Kind, rank: int | None = None, **details: Any) -> None:
        self._emit(Event(kind, self._number, rank, details))

    def _emit(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)


def _patience(failed: Sequence[Exit]) -> float:
    if all(ended.lingering for ended in failed):  # also with none
        return _EARLY_EXIT_SECONDS
    noise = all(ended.asked or is_peer_noise(ended) for ended in failed)
    return _NOISE_SETTLE_SECONDS if noise else _SETTLE_SECONDS


def _poll_for(attempt: Attempt, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not attempt.ended and time.monotonic() < until:
        attempt.poll(_POLL_SECONDS)


def _cause_of(attempt: Attempt) -> Cause | None:
    failed = attempt.failed
    if not failed:
        return None
    return left_first(attempt.states, failed) or first_cause(failed)
