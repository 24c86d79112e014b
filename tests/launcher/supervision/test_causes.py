"""Which of several failed ranks is the cause, and what class it is."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.supervision.causes import CauseClass, Exit, explain, first_cause, is_peer_noise


def ended(rank: int = 0, code: int = 1, at: float = 0.0, **known: object) -> Exit:
    return Exit(rank, "h", code, at, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (ended(code=1), "error"),
        (ended(code=0), "error"),
        (ended(code=-9), "killed"),
        (ended(code=-1), "killed"),
        (ended(code=-11), "killed"),
        (ended(code=-15), "preempted"),
        (ended(code=143), "preempted"),
        (ended(code=2), "bad config"),
        (ended(code=126), "bad config"),
        (ended(code=127, refused="command not found: x"), "bad config"),
        (ended(code=255, lost="has not reported"), "lost host"),
        (ended(code=-9, out_of_memory="kernel"), "oom"),
        (ended(code=-9, out_of_memory="limit"), "oom"),
        (ended(code=1, tail=("tensorflow.errors.ResourceExhaustedError: OOM",)), "oom"),
        (ended(code=1, tail=("MemoryError",)), "oom"),
        (ended(code=-6, tail=("terminate: std::bad_alloc",)), "oom"),
        (ended(code=1, silent=True), "killed"),
        (
            ended(code=1, tail=("launcher.train: rank 1: diverged: step 3",)),
            "diverged",
        ),
        (ended(code=1, tail=("syncbn.errors.NonFiniteError: step 3 is not finite",)), "diverged"),
        (ended(code=1, tail=("syncbn.errors.DivergenceError: the ranks do not",)), "diverged"),
        (ended(code=1, tail=("launcher.train: disk full: cannot write x",)), "disk full"),
        (ended(code=1, tail=("OSError: [Errno 28] No space left on device",)), "disk full"),
        (
            ended(code=1, tail=("ResourceExhaustedError: x; No space left on device",)),
            "disk full",
        ),
        (ended(code=1, tail=("x is off: No space left on device; training goes on",)), "error"),
    ],
)
def test_classes(failure: Exit, kind: CauseClass) -> None:
    assert explain(failure).kind == kind


@pytest.mark.parametrize(("code", "kind"), [(-15, "preempted"), (-9, "killed"), (1, "error")])
def test_a_failure_that_explains_itself_has_no_hint(code: int, kind: CauseClass) -> None:
    cause = explain(ended(code=code))
    assert (cause.kind, cause.hint) == (kind, None)


def test_the_signal_is_named_and_counted_as_a_shell_does() -> None:
    cause = explain(ended(rank=3, code=-11, step=7))
    assert cause.summary == "rank 3 on h was killed by SIGSEGV after step 7"
    assert cause.exit_code == 139


def test_the_first_failure_is_the_cause() -> None:
    assert first_cause([ended(0, at=2.0), ended(1, at=1.0)]).rank == 1


@pytest.mark.parametrize(
    "line",
    [
        "horovod.common.exceptions.HorovodInternalError: Connection reset by peer",
        "[/gloo/transport/tcp/pair.cc:598] Connection closed by peer [127.0.0.1]:1234",
        "UnavailableError: Collective ops is aborted by: Socket closed",
        "MPI_ABORT was invoked on rank 1",
        "UnknownError: HorovodAllreduce failed (direct exchange between ranks): Connection closed "
        "by peer: rank 1 has ended",
        "UnknownError: HorovodAllreduce failed (direct exchange between ranks): heartbeat timeout: "
        "rank 1 is stopped, or its connection is cut",
        "UnknownError: HorovodAllreduce failed (direct exchange between ranks): Horovod has been "
        "shut down: rank 1 has left the job or ended",
    ],
)
def test_messages_about_peers_are_not_the_cause(line: str) -> None:
    victim, culprit = ended(0, at=1.0, tail=(line,)), ended(1, at=2.0, tail=("ValueError: x",))
    assert is_peer_noise(victim)
    assert first_cause([victim, culprit]).rank == 1
    assert first_cause([victim]).rank == 0, "but better than nothing"


def test_a_signal_is_a_cause_regardless_of_the_output() -> None:
    noise = ("HorovodInternalError: Connection reset by peer",)
    killed, victim = ended(0, -9, at=2.0, tail=noise), ended(1, at=1.0, tail=noise)
    assert not is_peer_noise(killed)
    assert not is_peer_noise(ended(0, 0, tail=noise))
    assert first_cause([victim, killed]).rank == 0


def test_an_exit_without_report_ranks_after_one_with_a_reason() -> None:
    vanished, raised = ended(0, at=1.0, silent=True), ended(1, at=2.0, tail=("ValueError: x",))
    assert first_cause([vanished, raised]).rank == 1
    victim = ended(2, at=0.5, tail=("Socket closed",))
    assert first_cause([victim, vanished]).rank == 0, "and before the victims"


def test_a_rank_that_leaves_because_of_another_is_never_the_cause() -> None:
    victim = ended(0, 2, at=1.0, leaving=True, tail=("launcher.train: rank 1 failed",))
    culprit = ended(1, 2, at=2.0, tail=("launcher.train: rank 1: no such file",))
    assert is_peer_noise(victim)
    assert first_cause([victim, culprit]).rank == 1


def test_among_equal_usage_errors_the_one_with_a_message_is_the_cause() -> None:
    said = ended(1, 2, at=2.0, tail=("launcher.train: --epochs: expected a number",))
    assert first_cause([ended(0, 2, at=1.0), said, ended(2, 2, at=1.5)]).rank == 1


def test_ranks_ended_by_the_launcher_come_last() -> None:
    told, killed = ended(0, -15, at=1.0, asked=True), ended(1, -9, at=2.0)
    assert first_cause([told, killed]).rank == 1


VICTIMS = st.sampled_from(
    [
        {"code": 1, "tail": ("HorovodInternalError: Connection reset by peer",)},
        {"code": 1, "tail": ("Collective ops is aborted by: Socket closed", "name: ")},
        {"code": 2, "leaving": True, "tail": ("launcher.train: rank 1 failed",)},
        {"code": 2},
        {"code": -15, "asked": True},
        {"code": -9, "asked": True},
        {"code": 143, "asked": True},
        {"code": 137, "silent": True},
    ]
)
CULPRITS = st.sampled_from(
    [
        {"code": 1, "tail": ("ValueError: x",)},
        {"code": 2, "tail": ("launcher.train: --epochs: expected a number",)},
        {"code": 127, "refused": "command not found: x"},
        {"code": -9},
        {"code": -11, "tail": ("Socket closed",)},
        {"code": 3},
        {"code": 255, "lost": "has not reported"},
    ]
)
MOMENTS = st.floats(0, 1e3)


@given(
    st.lists(st.tuples(VICTIMS, MOMENTS)),
    st.lists(st.tuples(CULPRITS, MOMENTS), min_size=1),
    st.randoms(),
)
def test_in_any_order_the_first_independent_failure_is_the_cause(
    victims: list[tuple[dict[str, Any], float]],
    culprits: list[tuple[dict[str, Any], float]],
    random: Random,
) -> None:
    exits = [ended(rank, at=at, **known) for rank, (known, at) in enumerate([*victims, *culprits])]
    first = min(at for _, at in culprits)
    random.shuffle(exits)
    cause = first_cause(exits)
    assert cause.rank is not None
    assert cause.rank >= len(victims)
    assert culprits[cause.rank - len(victims)][1] == first


def test_defaults_of_an_exit() -> None:
    plain = Exit(0, "h", 0, 0.0)
    said = (plain.asked, plain.silent, plain.leaving, plain.lingering, plain.ended_by_others)
    assert said == (False,) * 5
    assert (plain.out_of_memory, plain.refused, plain.lost, plain.step) == (None,) * 4
    assert plain.tail == ()


def test_an_unnamed_signal_is_reported_by_number() -> None:
    assert explain(ended(code=-99)).summary == "rank 0 on h was killed by signal 99"


def test_the_exit_code_is_that_of_a_shell() -> None:
    codes = [explain(ended(code=code)).exit_code for code in (0, 1, 255, -1, -9)]
    assert codes == [0, 1, 255, 129, 137]


def test_a_long_exception_is_truncated() -> None:
    said = "ValueError: " + "x" * 300
    assert explain(ended(tail=("before", said))).summary.endswith(f": {said[:160]}")
    assert explain(ended(tail=(said, "after"))).summary == "rank 0 on h failed with exit code 1"
    diverged = "launcher.train: diverged: step 3 " + "x" * 400
    told = diverged.partition("diverged: ")[2]
    assert explain(ended(tail=(diverged,))).summary == f"rank 0 on h diverged: {told[:320]}"


def test_a_hint_if_there_is_one() -> None:
    assert explain(ended(tail=("ValueError: x",))).hint is None
    assert explain(ended(code=-9)).hint is None
    for by in ("kernel", "limit"):
        hint = explain(ended(code=-9, out_of_memory=by)).hint
        assert hint == "give the rank more memory (--memory), or make the batch smaller"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("OSError: [Errno 28] No space left on device: 'x'", "a disk is full"),
        ("OSError: [Errno 98] Address already in use", "a port is in use"),
        ("ModuleNotFoundError: No module named 'tensorflow'", "install the module"),
    ],
)
def test_hints(line: str, hint: str) -> None:
    assert hint in (explain(ended(tail=(line,))).hint or "")
