"""When ranks hang by their heartbeats, and which of them is furthest behind."""

import pytest

from launcher.heartbeat import Beat, Phase
from launcher.supervision.hang import HangWatch
from launcher.supervision.member import RankState
from tests.launcher.supervision.test_departures import left, state


def hangs(*states: RankState, timeout: float = 300.0, seconds: float = 301.0) -> bool:
    watch = HangWatch(timeout, 0.0)
    assert not watch.hangs(states, 0.0)
    return watch.hangs(states, seconds)


def test_training_without_steps_is_a_hang() -> None:
    assert hangs(state(0, "training", 4), state(1, "training", 5))
    assert hangs(state(0, "training", 4), state(1))
    assert not hangs(state(0, "training", 4), seconds=299.0)
    assert not hangs(state(0, "training", 4), timeout=0.0, seconds=1e9), "0 is for never"


@pytest.mark.parametrize("phase", ["starting", "evaluating", "saving"])
def test_phases_without_steps_may_take_any_time(phase: Phase) -> None:
    assert not hangs(state(0, "training", 4), state(1, phase, 4))
    assert not hangs(state(0, phase), state(1, phase))


def test_ranks_without_heartbeats_are_not_judged() -> None:
    assert not hangs(state(0), state(1))
    assert not hangs(left(0, "training"), state(1))


def test_any_step_of_any_rank_is_progress() -> None:
    watch = HangWatch(300.0, 0.0)
    for step in range(5):
        states = [state(0, "training", 1), state(1, "training", step)]
        assert not watch.hangs(states, step * 299.0)
    assert not watch.hangs(states, 4 * 299.0 + 299.0)
    assert watch.hangs(states, 4 * 299.0 + 301.0)
    assert watch.cause(states).rank == 0, "the furthest behind"


def at(rank: int, step: int | None, time: float | None) -> RankState:
    known = None if time is None else Beat("training", step, None, time)
    return RankState(rank, f"h{rank}", beat=known)


@pytest.mark.parametrize(
    ("states", "rank", "step"),
    [
        ([at(0, 7, 1.0), at(1, 6, 2.0)], 1, 6),
        ([at(0, 7, 2.0), at(1, 7, 1.0)], 1, 7),  # its last heartbeat is older than the other's
        ([at(0, 7, 1.0), at(1, 7, 2.0)], 0, 7),
        ([at(0, 1, 1.0), at(1, None, 2.0)], 1, 0),
        ([at(0, 0, 1.0), at(1, None, 2.0)], 0, 0),  # none yet is as far as step 0
        ([at(0, 1, 5.0), at(1, None, None)], 1, 0),
        ([at(0, 0, 5.0), at(1, None, None)], 1, 0),
        ([at(0, 0, 2.0), at(1, None, 1.0)], 1, 0),
        ([at(0, 0, 0.5), at(1, None, None)], 1, 0),
        ([at(0, 9, 1.0), left(1, "training"), at(2, 8, 2.0)], 2, 8),
    ],
)
def test_the_furthest_behind_is_named(states: list[RankState], rank: int, step: int) -> None:
    cause = HangWatch(300.0, 0.0).cause(states)
    assert (cause.kind, cause.rank, cause.host) == ("hang", rank, f"h{rank}")
    assert cause.step == states[rank].step
    assert cause.summary == (
        "no rank has finished a step for 300 s; "
        f"rank {rank} on h{rank} is the furthest behind, at step {step}"
    )
    assert cause.hint == "the stacks of every rank are at the end of its log"
