"""`launcher join`: containers of a job as processes, with real faults; tests/docker has tests with
Docker Engine."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.launcher.rendezvous.members import Group

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(90)]

over_either = pytest.mark.parametrize("backend", ["horovod", "mpi"])


@over_either
def test_two_members_run_one_job_and_end_together(group: Group, backend: str) -> None:
    group.join("--workers", "1", program=("--steps", "5"), backend=backend)
    group.join(program=("--steps", "5"), backend=backend)
    assert (group.end(0), group.end(1)) == (0, 0)
    for rank in (0, 1):
        assert f"[{rank}] step 5" in group.log(0)
    assert "launcher: succeeded" in group.log(0)
    assert not group.members[0].alive()


@over_either
def test_each_member_runs_its_slots_and_an_index_determines_its_ranks(
    group: Group, backend: str
) -> None:
    show = ("--steps", "1")
    two = {"slots": 2}
    group.join("--workers", "2", program=show, container=two, backend=backend)
    group.join("--index", "2", program=show, container=two, backend=backend)
    group.join("--index", "1", program=show, container=two, backend=backend)
    assert group.end(0) == 0, group.log(0)
    for rank in range(6):
        assert f"[{rank}] step 1" in group.log(0)
    assert "worker 2 of job" in group.log(1)
    assert "worker 1 of job" in group.log(2)


@over_either
def test_a_rank_that_fails_restarts_the_ranks_of_all_members(group: Group, backend: str) -> None:
    fault = ("--rank", "1", "--at", "8", "--fault", "os.kill(os.getpid(), 9)")
    group.join("--workers", "1", program=("--steps", "20", *fault), backend=backend)
    group.join(program=("--steps", "20", *fault), backend=backend)
    assert (group.end(0), group.end(1)) == (0, 0), group.log(0)
    log = group.log(0)
    assert "launcher: killed: rank 1 on worker-1@" in log
    assert "was killed by SIGKILL after step" in log
    assert "1 restart" in log
    assert group.steps() == 20


def test_a_leader_that_gives_up_tells_those_who_have_joined(group: Group) -> None:
    group.join("--workers", "2", container={"join_timeout": 3.0})
    group.join(container={"join_timeout": 60.0})
    assert group.end(0) == 1
    assert "worker 2 has not joined within 3 s" in group.log(0)
    assert group.end(1, seconds=15) == 1, group.log(1)


def test_of_two_usage_errors_the_one_with_bad_input_is_named(
    group: Group,
) -> None:
    """The other learns of it in a collective, leaves with the same code, and may be the faster."""
    leave = "heartbeat.beat('leaving'); sys.exit(2)"
    refuse = "time.sleep(0.1); print('rank 1: no such file'); sys.exit(2)"
    group.join("--workers", "1", program=("--rank", "0", "--at", "3", "--fault", leave))
    group.join(program=("--rank", "1", "--at", "3", "--fault", refuse))
    assert group.end(0) == 2, group.log(0)
    assert "launcher: bad config: rank 1 on worker-1@" in group.log(0)
    assert group.end(1) == 2


@over_either
def test_a_killed_member_can_rejoin(group: Group, backend: str) -> None:
    group.join("--workers", "1", program=("--steps", "60"), backend=backend)
    group.join(program=("--steps", "60"), backend=backend)
    group.says(0, "[1] step 6")
    group.members[1].processes[0].kill()
    group.says(0, "launcher: lost host: rank 1")
    group.join(program=("--steps", "60"), backend=backend)
    assert (group.end(0), group.end(2)) == (0, 0), group.log(0)
    assert group.steps() == 60


@over_either
def test_when_the_first_is_killed_the_others_end_their_ranks_and_wait_for_another(
    group: Group, backend: str
) -> None:
    group.join("--workers", "1", program=("--steps", "60"), backend=backend)
    group.join(program=("--steps", "60"), container={"join_timeout": 20}, backend=backend)
    group.says(0, "[1] step 6")
    group.members[0].processes[0].kill()
    limit = time.monotonic() + 8
    while group.programs() and time.monotonic() < limit:
        time.sleep(0.1)
    assert not group.programs(), "ranks outlive the first member"
    saved = group.steps()
    group.join("--workers", "1", program=("--steps", "60"), leads=True, backend=backend)
    assert group.end(2) == 0, group.log(2)
    assert group.end(1) == 0
    assert saved < group.steps() == 60


def test_a_member_that_never_joins_is_named_in_bounded_time(group: Group) -> None:
    group.join("--workers", "2", container={"join_timeout": 3})
    group.join("--index", "2", container={"join_timeout": 3})
    assert group.end(0, 20) == 1
    assert "launcher: worker 1 has not joined within 3 s" in group.log(0)
    assert group.end(1, 20) == 1  # told by the leader, which is no lost host
    assert "lost host" not in group.log(1)


@over_either
def test_after_sigterm_all_save_and_the_exit_code_is_143(group: Group, backend: str) -> None:
    group.join("--workers", "1", program=("--steps", "500"), backend=backend)
    group.join(program=("--steps", "500"), container={"join_timeout": 3}, backend=backend)
    group.says(0, "[1] step 6")
    group.members[0].send_signal(signal.SIGTERM)
    assert group.end(0) == 143, group.log(0)
    assert {path.name for path in group.shared.glob("stopped-*")} == {"stopped-0", "stopped-1"}
    assert group.end(1) == 1  # it has no leader any more


def test_a_first_member_that_still_waits_can_be_stopped(group: Group) -> None:
    group.join("--workers", "1")
    limit = time.monotonic() + 20
    while _silent(group.port):
        assert time.monotonic() < limit
        time.sleep(0.05)
    group.members[0].send_signal(signal.SIGTERM)
    assert group.end(0, 5) == 143


@over_either
def test_sigterm_to_a_member_is_preemption_and_its_rank_saves(group: Group, backend: str) -> None:
    group.join(
        "--workers", "1", program=("--steps", "500"), restart={"max_restarts": 0}, backend=backend
    )
    group.join(program=("--steps", "500"), backend=backend)
    group.says(0, "[1] step 6")
    group.members[1].send_signal(signal.SIGTERM)
    assert group.end(1) == 143, group.log(1)
    assert (group.shared / "stopped-1").exists()
    assert group.end(0) == 1
    assert "launcher: preempted: rank 1 on worker-1@" in group.log(0)


def test_wrong_flags_are_an_immediate_error(group: Group) -> None:
    group.join("--workers", "1", backend="local")
    assert group.end(0) == 2
    said = "launcher: backend: expected mpi, horovod or tf for several ranks. Received: local"
    assert said in group.log(0)
    alone = subprocess.run(
        [sys.executable, "-m", "launcher", "join", "--index", "1", "--", "true"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert alone.returncode == 2
    assert "--head: expected the name of the first container" in alone.stderr


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("{", "--job: expected JSON"),
        ("[]", "--job: expected a JSON object"),
        ('{"grade": 1}', "grade: no such field of a job; did you mean grace?"),
        ('{"container": {"slots": "two"}}', "container.slots: expected a whole number"),
    ],
)
def test_the_error_for_a_wrong_job_names_its_field(job: str, said: str) -> None:
    words = ["join", "--job", job, "--", "true"]
    done = subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"launcher: {said}")


def _silent(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
