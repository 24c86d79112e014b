"""What a worker runs for a leader that it cannot trust: its own command, and nothing else."""

import json
import os
import shlex
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
