"""Silent ranks after a peer has exited."""

import time
from collections.abc import Sequence

import pytest

from launcher.heartbeat import Beat, Phase
from launcher.supervision.causes import Exit
from launcher.supervision.departures import (
    SilenceWatch,
    leavers,
    left_during_training,
    left_first,
)
from launcher.supervision.member import RankState


def state(rank: int, phase: Phase | None = None, step: int | None = None) -> RankState:
    beat = None if phase is None else Beat(phase, step, None, 0.0)
    return RankState(rank, "h", beat=beat)


def left(rank: int, phase: Phase | None = None, code: int = 0, at: float = 0.0) -> RankState:
    gone = state(rank, phase)
    gone.exit = Exit(rank, "h", code, at)
    return gone


def silence(
    *states: RankState, timeout: float = 30.0, seconds: float = 31.0, output_lines: int = 0
) -> bool:
    watch = SilenceWatch(timeout, 0.0)
    assert not watch.silent(states, 0.0, 0)
    return watch.silent(states, seconds, output_lines)


def test_silence_after_a_peer_has_left() -> None:
    assert silence(state(0), left(1))
    assert silence(state(0, "training"), left(1))
    assert silence(state(0, "starting"), left(1, "starting")), "it waits for the peer's broadcast"
    assert not silence(state(0), left(1), seconds=29.0)
    assert not silence(state(0), left(1), timeout=0.0, seconds=1e9), "0 is for ever"
    assert not silence(state(0), left(1), output_lines=1), "it speaks"


def test_silence_without_an_early_exit_is_ignored() -> None:
    assert not silence(state(0), state(1))
    assert not silence(left(0), left(1)), "nobody is left to wait"
    assert not silence(state(0), left(1, "done")), "it has done its work"
    assert not silence(state(0), left(1, code=3)), "a failure of its own, found at once"
    assert not silence(state(0, "saving"), left(1))
    assert not silence(state(0, "evaluating"), left(1))


def test_a_heartbeat_is_activity() -> None:
    watch, gone = SilenceWatch(30.0, 0.0), left(1)
    for second in range(0, 100, 10):
        assert not watch.silent([state(0, "training", second), gone], float(second), 0)
    assert not watch.silent([state(0, "training", 90), gone], 119.0, 0)
    assert watch.silent([state(0, "training", 90), gone], 121.0, 0)


def test_the_warning_is_returned_once_and_early() -> None:
    watch, states = SilenceWatch(30.0, 0.0), [state(0), left(1)]
    for second in range(60):
        watch.silent(states, float(second), 0)
        if (text := watch.warning(states, float(second))) is not None:
            break
    assert second == 11
    assert text is not None
    assert "--exit-timeout" in text
    assert watch.warning(states, 20.0) is None


def test_which_rank_left_first() -> None:
    late, early = left(1, at=2.0), left(2, at=1.0)
    assert [gone.rank for gone in leavers([state(0), late, early])] == [2, 1]
    asked = state(3)
    asked.exit = Exit(3, "h", 0, 0.0, asked=True)
    assert leavers([asked, left(4, "done"), left(5, code=1)]) == []


def test_a_program_that_exited_has_left_while_its_process_runs() -> None:
    waits = state(1)
    waits.program_exit = Exit(1, "h", 0, 5.0, lingering=True)
    assert leavers([state(0), waits])[0].at == 5.0
    for end in (Exit(1, "h", -9, 9.0, asked=True), Exit(1, "h", 137, 9.0, silent=True)):
        waits.exit = end
        assert leavers([waits])[0].at == 5.0, "how its process was ended says nothing"
    waits.exit = Exit(1, "h", 3, 6.0)
    assert leavers([waits]) == [], "its true exit code is known by now"


NOISE = ("UnknownError: Horovod has been shut down.",)


@pytest.mark.parametrize(
    ("ended", "follows"),
    [
        (Exit(0, "h", 1, 100.0, tail=NOISE), True),
        (Exit(0, "h", -11, 11.0), True),
        (Exit(0, "h", -11, 100.0), False),
        (Exit(0, "h", 1, 11.0, tail=("ValueError: of its own",)), False),
        (Exit(0, "h", 1, 9.0, tail=NOISE), False),
        (Exit(0, "h", -15, 11.0, asked=True), True),
    ],
)
def test_which_failures_follow_from_an_early_exit(ended: Exit, follows: bool) -> None:
    failed = state(0)
    failed.exit = ended
    cause = left_first([failed, left(1, at=10.0)], [ended])
    assert (cause is not None and cause.rank == 1) is follows
    if follows and not ended.asked:
        assert cause is not None
        at = time.strftime("%H:%M:%S", time.localtime(10.0))
        assert cause.summary.startswith(f"rank 1 on h ended with exit code 0 at {at} while")
        assert (
            f"; rank 0 {'was killed by SIGSEGV' if ended.code < 0 else 'failed'}" in cause.summary
        )


def test_one_independent_failure_among_several_is_enough() -> None:
    failed = [Exit(0, "h", 1, 11.0, tail=NOISE), Exit(2, "h", 1, 12.0, tail=("KeyError: 'x'",))]
    assert left_first([left(1, at=10.0)], failed) is None


def test_a_crash_of_the_rank_that_left_is_not_a_consequence() -> None:
    crashed = left(1, code=-11, at=11.0)
    crashed.program_exit = Exit(1, "h", 0, 10.0, lingering=True)
    assert crashed.exit is not None
    assert left_first([state(0), crashed], [crashed.exit]) is None


@pytest.mark.parametrize(
    ("states", "early"),
    [
        ([state(0, "training"), left(1, "training")], True),
        ([state(0, "training"), left(1, "done")], False),
        ([state(0, "evaluating"), left(1, "training")], False),
        ([state(0, "training"), left(1)], False),
        ([left(0, "training"), left(1, "training")], False),
    ],
)
def test_leaving_during_training(states: Sequence[RankState], early: bool) -> None:
    assert left_during_training(states) is early
