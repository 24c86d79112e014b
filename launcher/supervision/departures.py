"""A rank that exits with 0 while its peers still run and may wait for it forever."""

import time
from collections.abc import Sequence
from dataclasses import replace

from launcher.supervision.causes import Cause, Exit, explain, is_crash, is_peer_noise, outcome
from launcher.supervision.member import RankState

_CRASH_SECONDS = 5.0  # a backend that crashes because a peer has exited does so at once
_LONGEST_NOTICE = 10.0
_STILL_RUNNING = " while its peers were still running"
_HINT = (
    "every rank must take part in every step: look for a return, break or sys.exit that only some "
    "ranks reach. If ranks may end at different times: --exit-timeout SECONDS, 0 for no limit"
)


def leavers(states: Sequence[RankState]) -> list[Exit]:
    """Ranks that exited with 0 without reporting `done`, in the order of their exits."""
    ends = [
        _clean_exit(state) for state in states if state.beat is None or state.beat.phase != "done"
    ]
    return sorted(filter(None, ends), key=lambda ended: ended.at)


def left_during_training(states: Sequence[RankState]) -> bool:
    """Whether, by their heartbeats, a rank has stopped training while a peer still trains."""
    phases = {state.beat.phase for state in states if state.end is None and state.beat is not None}
    reporting = [state for state in states if state.beat is not None]
    return "training" in phases and bool(leavers(reporting))


class SilenceWatch:
    """Detects that a rank has ended and its peers have shown no activity for `timeout` seconds.

    Ranks may end at different times: rank 0 alone writes the model. Output and heartbeats count as
    activity; saving and evaluating may take any time. With `timeout` 0 there is no limit.
    """

    def __init__(self, timeout: float, now: float) -> None:
        self._timeout = timeout
        self._last = now
        self._seen: list[object] = []
        self._warned = False

    def silent(self, states: Sequence[RankState], now: float, output_lines: int) -> bool:
        """Whether the peers have been silent for too long. Times are monotonic."""
        seen = [output_lines, *((state.end is None, state.beat) for state in states)]
        staying = [state for state in states if state.end is None]
        phases = {state.beat.phase for state in staying if state.beat is not None}
        judged = staying and leavers(states) and not phases & {"saving", "evaluating"}
        if seen != self._seen or not judged:
            self._seen, self._last = seen, now
        return 0 < self._timeout < now - self._last

    def warning(self, states: Sequence[RankState], now: float) -> str | None:
        """A warning, returned once, well before the timeout."""
        seconds = min(_LONGEST_NOTICE, self._timeout / 3)
        if self._warned or not 0 < seconds < now - self._last:
            return None
        self._warned = True
        return (
            f"{_departure(leavers(states)[0])}; its peers have shown no activity for "
            f"{seconds:g} s and will be ended after {self._timeout:g} s (--exit-timeout)"
        )

    def cause(self, states: Sequence[RankState]) -> Cause:
        """The rank that left first, and how long its peers have waited."""
        silent_for = f", which showed no activity for {self._timeout:g} s"
        return _departure_cause(leavers(states)[0], _STILL_RUNNING + silent_for)


def left_first(states: Sequence[RankState], failed: Sequence[Exit]) -> Cause | None:
    """The rank that left before any other failed, if they failed because of that."""
    left = next(iter(leavers(states)), None)
    if left is None:
        return None
    others = [ended for ended in failed if ended.rank != left.rank]
    by_themselves = [ended for ended in others if not ended.asked]
    if not others or not all(_follows(left, ended) for ended in by_themselves):
        return None
    if not by_themselves:
        return _departure_cause(left, _STILL_RUNNING)
    first = min(by_themselves, key=lambda ended: ended.at)
    then = f"; rank {first.rank} {outcome(first)} {first.at - left.at:.1f} s later"
    return _departure_cause(left, _STILL_RUNNING + then)


def _clean_exit(state: RankState) -> Exit | None:
    """The exit of the rank, if it was with 0; MPI may have crashed in its process after that."""
    ended, exited = state.end, state.program_exit
    if ended is None or ended.asked:
        return None
    if ended.code < 0 and exited is not None:
        ended = exited
    return ended if ended.code == 0 else None


def _follows(left: Exit, ended: Exit) -> bool:
    if ended.at < left.at:
        return False
    return is_peer_noise(ended) or (is_crash(ended) and ended.at - left.at < _CRASH_SECONDS)


def _departure_cause(left: Exit, then: str) -> Cause:
    step = "" if left.step is None else f" after step {left.step}"
    return replace(explain(left), summary=f"{_departure(left)}{step}{then}", hint=_HINT)


def _departure(left: Exit) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(left.at))
    return f"rank {left.rank} on {left.host} ended with exit code 0 at {at}"
