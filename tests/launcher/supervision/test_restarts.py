"""When a job is tried again, after how long, and that its target is looked at before."""

import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from launcher.agent.plan import Plan
from launcher.errors import HostError
from launcher.runs.events import Event
from launcher.runs.writer import RunWriter
from launcher.spec import JobSpec, RestartPolicy, build_spec
from launcher.supervision.causes import Cause, Exit
from launcher.supervision.restarts import wait_seconds, worth_a_restart
from launcher.supervision.stop import StopRequests
from launcher.supervision.supervisor import Supervisor, _patience
from launcher.targets.local import LocalJob


def test_waits_double_up_to_the_limit() -> None:
    policy = RestartPolicy(backoff=2.0, backoff_limit=30.0, jitter=0.0)
    assert [wait_seconds(policy, done) for done in range(6)] == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert wait_seconds(policy, 100_000) == 30.0


def test_waits_are_shortened_by_no_more_than_the_jitter() -> None:
    policy = RestartPolicy(backoff=8.0, jitter=0.25)
    waits = [wait_seconds(policy, 0) for _ in range(500)]
    assert 6.0 <= min(waits) < 6.5
    assert 7.5 < max(waits) <= 8.0


@pytest.mark.parametrize(
    ("cause", "codes", "worth"),
    [
        (Cause("error", "", exit_code=1), None, True),
        (Cause("error", "", exit_code=1), (1, 137), True),
        (Cause("error", "", exit_code=3), (1, 137), False),
        (Cause("killed", "", exit_code=137), (1, 137), True),
        (Cause("error", "", exit_code=0), (1, 137), False),
        (Cause("hang", ""), (1, 137), True),
        (Cause("lost host", ""), (1, 137), True),
        (Cause("bad config", "", exit_code=2), None, False),
        (Cause("bad config", ""), (2,), False),
        (Cause("diverged", "", exit_code=1), None, False),
    ],
)
def test_which_failures_restart(cause: Cause, codes: tuple[int, ...] | None, worth: bool) -> None:
    policy = RestartPolicy(max_restarts=3, exit_codes=codes)
    assert [worth_a_restart(policy, cause, done) for done in range(5)] == [worth] * 3 + [False] * 2


def test_how_long_other_exits_are_waited_for() -> None:
    failed = Exit(0, "h", 1, 0.0)
    noise = Exit(0, "h", 1, 0.0, asked=True)
    lingering = Exit(0, "h", 1, 0.0, lingering=True)
    assert _patience([failed]) == _patience([noise, failed]) == _patience([lingering, failed])
    assert _patience([failed]) < _patience([noise]) < _patience([lingering]) == _patience([])


class Unreachable:
    """Hosts whose check succeeds and whose attempt fails; the third check fails too."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.asked: list[str] = []

    def check(self) -> None:
        self.asked.append("check")
        if self.asked.count("check") == 3:
            raise HostError("h1 cannot be reached")

    def attempt(self, environment: Mapping[str, str]) -> AbstractContextManager[Plan]:
        self.asked.append(f"attempt {environment['LAUNCHER_ATTEMPT']}")
        raise HostError("h1 was lost")


def test_the_target_is_checked_before_every_restart(tmp_path: Path) -> None:
    policy = {"max_restarts": 3, "backoff": 0.01, "exit_codes": [1]}
    spec = build_spec({"command": ["a"], "output": tmp_path, "restart": policy})
    target, record, stop = Unreachable(spec), RunWriter.create(spec), StopRequests()
    events: list[Event] = []
    result = Supervisor(target, record, [events.append]).run(stop)
    record.close()
    stop.close()
    # The launcher itself has looked before the first one.
    looks = ["attempt 0", "check", "attempt 1", "check", "attempt 2", "check"]
    assert target.asked == looks
    causes = [event.details["summary"] for event in events if event.kind == "failed"]
    assert causes == ["h1 was lost"] * 3 + ["h1 cannot be reached"]
    assert (result.outcome, result.exit_code, result.restarts) == ("failed", 1, 3)


def test_the_announced_wait_is_the_actual_wait(tmp_path: Path) -> None:
    policy = {"max_restarts": 1, "backoff": 0.4, "jitter": 0.0}
    spec = build_spec({"command": ["a"], "output": tmp_path, "restart": policy})
    target, record, stop = Unreachable(spec), RunWriter.create(spec), StopRequests()
    told: list[tuple[str, float]] = []
    events: list[Event] = []

    def note(event: Event) -> None:
        told.append((event.kind, time.monotonic()))
        events.append(event)

    Supervisor(target, record, [note]).run(stop)
    record.close()
    stop.close()
    at = dict(told)
    assert [event.details["seconds"] for event in events if event.kind == "restarting"] == [0.4]
    assert at["failed"] - at["restarting"] >= 0.4, "the second failure follows after the wait"


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_the_supervisor_waits_while_the_ranks_save(tmp_path: Path) -> None:
    """The byte that woke it is read: otherwise every wait ends at once, until the ranks do."""
    save = "for _ in range(3): time.sleep(0.2); print('saving')"
    program = (
        "import signal, sys, time\n"
        f"def leave(*_):\n    {save}\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, leave); print('ready'); time.sleep(50)\n"
    )
    command = [sys.executable, "-u", "-c", program]
    spec = build_spec({"command": command, "output": tmp_path, "restart": {"max_restarts": 0}})
    record, stop = RunWriter.create(spec), StopRequests()
    wakes: list[bool] = []

    def note(event: Event) -> None:
        if event.details.get("text") == "ready":
            os.kill(os.getpid(), signal.SIGTERM)
        if event.details.get("text") == "saving":
            wakes.append(bool(select.select([stop.descriptor], [], [], 0)[0]))

    with stop.listening():
        result = Supervisor(LocalJob(spec), record, [note]).run(stop)
    record.close()
    stop.close()
    assert result.outcome == "stopped"
    assert wakes == [False] * 3
