"""Tells a hang from patience: no rank has finished a step for too long, and none has a reason."""

from collections.abc import Sequence

from launcher.supervision.causes import Cause
from launcher.supervision.member import RankState

_PATIENT_PHASES = {"starting", "evaluating", "saving"}


class HangWatch:
    """`timeout` in seconds, 0 for never. Times are monotonic."""

    def __init__(self, timeout: float, now: float) -> None:
        self._timeout = timeout
        self._last = now
        self._seen: list[tuple[object, ...]] = []

    def hangs(self, states: Sequence[RankState], now: float, output_lines: int) -> bool:
        """Whether the job hangs, told by the ranks' heartbeats.

        Ranks without heartbeats are not judged while all of them live. Once one has ended, silence
        is: its peers may wait for it for ever.
        """
        alive = [state for state in states if state.exit is None]
        some_ended = len(alive) < len(states)
        seen: list[tuple[object, ...]] = [
            (state.exit is None, state.step, state.beat.phase if state.beat else None)
            for state in states
        ]
        if some_ended:
            seen.append((output_lines,))
        if seen != self._seen:
            self._seen, self._last = seen, now
        phases = {state.beat.phase for state in alive if state.beat is not None}
        waiting = bool(phases & {"training"}) and not phases & _PATIENT_PHASES
        if not (waiting or (some_ended and not phases)):
            self._last = now
        return 0 < self._timeout < now - self._last

    def cause(self, states: Sequence[RankState]) -> Cause:
        """The hang in words, with the stack of the rank that is furthest behind."""
        alive = [state for state in states if state.exit is None]
        behind = min(alive, key=_progress)
        place = f"rank {behind.rank} on {behind.host}"
        if behind.beat is None:
            what = f"a rank has ended and {place} has said nothing for {self._timeout:g} s"
        else:
            what = f"no rank has finished a step for {self._timeout:g} s; {place} is the furthest"
            what += f" behind, at step {behind.step or 0}"
        return Cause(
            "hang",
            what,
            rank=behind.rank,
            host=behind.host,
            step=behind.step,
            tail=tuple(behind.tail),
            hint="the stacks of every rank are at the end of its log",
        )


def _progress(state: RankState) -> tuple[int, float]:
    return state.step or 0, state.beat.time if state.beat is not None else 0.0
