"""`launcher join`: containers of a job as processes, with real faults; tests/docker has tests with
Docker Engine."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launcher.placement.backends import find_mpirun, mpi_environment
from launcher.rendezvous import mpi_shell
from launcher.rendezvous.mpi_worker import daemon_process
from launcher.rendezvous.registry import Registry
from launcher.rendezvous.wire import Exchange, JoinReply, WireError
from launcher.spec import build_spec
from tests.jobs import TOKEN, Job
from tests.launcher.rendezvous.members import Group

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(90)]

_MPIRUN = [find_mpirun() or "mpirun", "--mca", "oob_tcp_if_include", "lo"]

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
    assert group.end(1, 20) == 1
    assert "launcher: lost host: 127.0.0.1:" in group.log(1)


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


def test_mpirun_of_the_leader_starts_only_the_command_of_the_worker(
    group: Group, tmp_path: Path
) -> None:
    """A fake leader with a real mpirun: whatever it names, the worker's own command runs."""
    with Registry("job", 1, 1, group.port) as registry:
        group.members.append(Job([], tmp_path, group.token, 0))
        group.join(program=("--steps", "200"), backend="mpi")
        (worker,) = registry.wait(20)
        shell = shlex.join([sys.executable, mpi_shell.__file__])
        command = [*_MPIRUN, "-np", "1", "--host", "worker-1:1", "--mca", "plm_rsh_agent", shell]
        evil = ["-x", "LD_LIBRARY_PATH=/evil", "-x", "HOROVOD_TIMELINE=/tmp/x"]
        leader = subprocess.Popen(
            [*command, *evil, "touch", str(tmp_path / "owned")],
            env={
                **os.environ,
                **mpi_environment(),
                mpi_shell.WORKERS_VARIABLE: json.dumps({"worker-1": (worker.address, worker.port)}),
                TOKEN: group.token,
            },
            start_new_session=True,
        )
        group.members[0].processes.append(leader)
        process = _rank_of(group)
        variables, command = process.environ(), process.cmdline()
        assert "rank_program" in " ".join(command)
        assert variables["OMPI_COMM_WORLD_SIZE"] == "1"
        assert "HOROVOD_TIMELINE" not in variables
        assert variables.get("LD_LIBRARY_PATH") != "/evil"
        leader.kill()
        registry.finish(0)
        assert group.end(1) == 0
    assert not group.programs()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"ess_base_vpid": "1;touch owned"},
        {"orte_hnp_uri": "7.0;tcp://127.0.0.1:1;tcp://10.0.0.1:1"},
        {"orte_node_regex": "vm --mca orte_fork_agent /bin/touch"},
    ],
)
def test_parameters_that_are_not_of_their_kind_start_no_daemon(
    wrong: dict[str, str], tmp_path: Path
) -> None:
    right = {
        "ess_base_jobid": "7",
        "ess_base_vpid": "1",
        "ess_base_num_procs": "2",
        "orte_node_regex": "vm,worker-[1:1]@0(2)",
        "orte_hnp_uri": "7.0;tcp://10.0.0.9,10.0.0.8:4000",
    }
    exchange = Exchange(JoinReply(1), "127.0.0.1", "127.0.0.2")
    spec = build_spec({"command": ["true"], "backend": "mpi"})
    made = daemon_process(spec, right, exchange, {"LAUNCHER_ATTEMPT"}, tmp_path)
    assert "7.0;tcp://127.0.0.2:4000" in made.argv, "it connects to the leader, and nobody else"
    with pytest.raises(WireError, match="of mpirun's daemon"):
        daemon_process(spec, {**right, **wrong} if wrong else {}, exchange, set(), tmp_path)


def test_a_worker_runs_only_its_own_command(group: Group, tmp_path: Path) -> None:
    """A fake leader can only start the worker's own command, with few variables."""
    with Registry("job", 1, 1, group.port) as registry:
        group.members.append(Job([], tmp_path, group.token, 0))  # we are the first
        group.join(program=("--steps", "200"))
        (worker,) = registry.wait(20)
        # On the network of the first container only.
        opened = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr]
        addresses = [tuple(c.laddr) for c in opened]
        assert {host for host, port in addresses if port == worker.port} == {"127.0.0.1"}
        evil = {"LD_PRELOAD": "/evil.so", "HOROVOD_TIMELINE": "/tmp/x", "LAUNCHER_WORLD_SIZE": "1"}
        evil |= {"LAUNCHER_ATTEMPT": "0", "LAUNCHER_RUN_DIR": "/etc/../somewhere"}
        order = {"argv": ["touch", str(tmp_path / "owned")], "cwd": "/", "environment": evil}
        line = json.dumps({**order, "rank": 0, "local_rank": 0}) + "\n"
        # From any other address than the leader's not even that.
        stranger = socket.create_connection(("127.0.0.1", worker.port), 5, ("127.0.0.2", 0))
        with stranger:
            stranger.sendall(line.encode())
            assert _ends(stranger)
        assert not group.programs()
        with socket.create_connection(("127.0.0.1", worker.port), 5) as connection:
            connection.sendall(line.encode())
            process = _rank_of(group)
            # With the connection the rank ends.
            variables, command = process.environ(), process.cmdline()
        assert "rank_program" in " ".join(command)
        assert not {"LD_PRELOAD", "HOROVOD_TIMELINE"} & variables.keys()
        assert variables["LAUNCHER_RUN_DIR"] == str(tmp_path / "member-1" / "somewhere")
        registry.finish(0)
        assert group.end(1) == 0
    assert not (tmp_path / "owned").exists()


def _ends(connection: socket.socket) -> bool:
    """Whether the other side closes the connection without a reply."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def _rank_of(group: Group) -> psutil.Process:
    limit = time.monotonic() + 20
    while not (found := group.programs()):
        assert time.monotonic() < limit, group.log(1)
        time.sleep(0.02)
    return found[0]


def _silent(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
