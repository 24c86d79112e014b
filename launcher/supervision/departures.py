"""A rank that ends with exit code 0 while its peers still work and may wait for it for ever."""

import time
from collections.abc import Sequence
from dataclasses import replace

from launcher.supervision.causes import Cause, Exit, explain, is_crash, is_peer_noise, outcome
from launcher.supervision.member import RankState

_CRASH_SECONDS = 5.0  # a backend that crashes because a peer has gone does so at once
_LONGEST_NOTICE = 10.0
_AT_WORK = " while its peers were still at work"
_HINT = (
    "every rank has to take part in every step: look for what only some ranks reach (return, break,"
    " sys.exit). Where ranks may end at different times: --exit-timeout SECONDS, 0 for no limit"
)


def leavers(states: Sequence[RankState]) -> list[Exit]:
    """Ranks that ended with 0 without reporting that they were done, in the order of their ends."""
    ends = [_left(state) for state in states if state.beat is None or state.beat.phase != "done"]
    return sorted(filter(None, ends), key=lambda ended: ended.at)


def left_in_mid_training(states: Sequence[RankState]) -> bool:
    """Whether, by their heartbeats, a rank has stopped training while a peer still trains."""
    phases = {state.beat.phase for state in states if state.end is None and state.beat is not None}
    told = [state for state in states if state.beat is not None]
    return "training" in phases and bool(leavers(told))


class SilenceWatch:
    """Detects that a rank has ended and its peers have shown no activity for `timeout` seconds.

    Ranks may end at different times: rank 0 alone writes the model. Output and heartbeats count as
    activity; saving and evaluating may take any time. With `timeout` 0 there is no limit.
    """

    def __init__(self, timeout: float, now: float) -> None:
        self._timeout = timeout
        self._last = now
        self._seen: list[object] = []
        self._noticed = False

    def silent(self, states: Sequence[RankState], now: float, output_lines: int) -> bool:
        """Whether the peers have been silent for too long. Times are monotonic."""
        seen = [output_lines, *((state.end is None, state.beat) for state in states)]
        staying = [state for state in states if state.end is None]
        phases = {state.beat.phase for state in staying if state.beat is not None}
        judged = staying and leavers(states) and not phases & {"saving", "evaluating"}
        if seen != self._seen or not judged:
            self._seen, self._last = seen, now
        return 0 < self._timeout < now - self._last

    def notice(self, states: Sequence[RankState], now: float) -> str | None:
        """A warning, given once, well before the time is over."""
        seconds = min(_LONGEST_NOTICE, self._timeout / 3)
        if self._noticed or not 0 < seconds < now - self._last:
            return None
        self._noticed = True
        return (
            f"{_place(leavers(states)[0])}; its peers have said nothing for {seconds:g} s, "
            f"and are ended after {self._timeout:g} s (--exit-timeout)"
        )

    def cause(self, states: Sequence[RankState]) -> Cause:
        """The rank that left first, and how long its peers have waited."""
        return _blame(leavers(states)[0], f"{_AT_WORK}, which said nothing for {self._timeout:g} s")


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
        return _blame(left, _AT_WORK)
    first = min(by_themselves, key=lambda ended: ended.at)
    then = f"; rank {first.rank} {outcome(first)} {first.at - left.at:.1f} s later"
    return _blame(left, _AT_WORK + then)


def _left(state: RankState) -> Exit | None:
    """The end of the rank, if it was with 0; MPI may have crashed in its process after that."""
    ended, over = state.end, state.over
    if ended is None or ended.asked:
        return None
    if ended.code < 0 and over is not None:
        ended = over
    return ended if ended.code == 0 else None


def _follows(left: Exit, ended: Exit) -> bool:
    if ended.at < left.at:
        return False
    return is_peer_noise(ended) or (is_crash(ended) and ended.at - left.at < _CRASH_SECONDS)


def _blame(left: Exit, then: str) -> Cause:
    step = "" if left.step is None else f" after step {left.step}"
    return replace(explain(left), summary=f"{_place(left)}{step}{then}", hint=_HINT)


def _place(left: Exit) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(left.at))
    return f"rank {left.rank} on {left.host} ended with exit code 0 at {at}"
