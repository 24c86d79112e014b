"""Detects a hang: no rank finishes a step within the timeout, and none is in a slow phase."""

from collections.abc import Sequence

from launcher.supervision.causes import Cause
from launcher.supervision.member import RankState

_PATIENT_PHASES = {"starting", "evaluating", "saving"}


class HangWatch:
    """Compares the heartbeats of all ranks with `timeout` seconds, 0 for never.

    Times are monotonic.
    """

    def __init__(self, timeout: float, now: float) -> None:
        self._timeout = timeout
        self._last = now
        self._seen: list[tuple[object, ...]] = []

    def hangs(self, states: Sequence[RankState], now: float) -> bool:
        """Whether the job hangs, by the ranks' heartbeats; ranks without heartbeats are ignored."""
        alive = [state for state in states if state.end is None]
        seen: list[tuple[object, ...]] = [
            (state.end is None, state.step, state.beat.phase if state.beat else None)
            for state in states
        ]
        phases = {state.beat.phase for state in alive if state.beat is not None}
        waiting = "training" in phases and not phases & _PATIENT_PHASES
        if seen != self._seen or not waiting:
            self._seen, self._last = seen, now
        return 0 < self._timeout < now - self._last

    def cause(self, states: Sequence[RankState]) -> Cause:
        """The hang as a cause, with the last lines of the rank that is furthest behind."""
        alive = [state for state in states if state.end is None]
        behind = min(alive, key=_progress)
        return Cause(
            "hang",
            f"no rank has finished a step for {self._timeout:g} s; rank {behind.rank} on "
            f"{behind.host} is the furthest behind, at step {behind.step or 0}",
            rank=behind.rank,
            host=behind.host,
            step=behind.step,
            tail=tuple(behind.tail),
            hint="the stacks of every rank are at the end of its log",
        )


def _progress(state: RankState) -> tuple[int, float]:
    return state.step or 0, state.beat.time if state.beat is not None else 0.0
