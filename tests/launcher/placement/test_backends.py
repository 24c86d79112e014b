"""Every backend under the launcher: real ranks that sum their numbers, here and on hosts."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.placement.backends import choose_backend, held_ports
from tests.launcher import networks
from tests.launcher.launches import Launch
from tests.requirements import require_horovod

SOURCE = """
import json, os, sys
import tensorflow as tf
import syncbn

communicator = syncbn.init(sys.argv[1])
rank = float(os.environ["LAUNCHER_RANK"])
total = communicator.all_reduce(tf.constant([1.0, rank]), name="sum").numpy().tolist()
communicator.barrier()
found = [communicator.name, communicator.rank, communicator.size, communicator.local_size, total]
print(json.dumps(found))
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    path = tmp_path / "add_up.py"
    path.write_text(SOURCE)
    return ["python", str(path)]


def needs(backend: str) -> None:
    if backend == "horovod":
        require_horovod()


def answers(launch: Launch, ranks: int) -> list[list[object]]:
    """What each rank has found, from its log."""
    result = launch.finish(150)
    assert result.returncode == 0, result.transcript()
    found = []
    for rank in range(ranks):
        log = (launch.run / "logs" / "attempt-0" / f"rank-{rank}.log").read_text()
        found.append(json.loads(log.strip().splitlines()[-1]))
    return found


@pytest.mark.multiprocess
@pytest.mark.timeout(180)
@pytest.mark.parametrize("backend", ["horovod", "mpi", "tf"])
def test_ranks_of_this_machine(launch: Launch, program: list[str], backend: str) -> None:
    needs(backend)
    launch.start(["-np", "2", "--backend", backend, "--max-restarts", "0"], [*program, backend])
    found = answers(launch, 2)
    assert found == [[backend, rank, 2, 2, [2.0, 1.0]] for rank in range(2)]


@pytest.mark.multiprocess
@pytest.mark.timeout(180)
def test_a_job_that_names_no_backend_gets_the_fastest(launch: Launch, program: list[str]) -> None:
    launch.start(["-np", "2", "--max-restarts", "0"], [*program, "auto"])
    found = answers(launch, 2)
    assert found == [["mpi", rank, 2, 2, [2.0, 1.0]] for rank in range(2)]
    spec = json.loads((launch.run / "spec.json").read_text())
    assert spec["backend"] == "mpi"
    assert spec["backend_reason"] == "the fastest one installed"
    assert "2 ranks, backend mpi (the fastest one installed), in " in launch.text()


def test_mpi_needs_a_horovod_that_can_join_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_backend(1)[0] == "local"
    library = tmp_path / "horovod" / "tensorflow" / "mpi_lib.cpython-311.so"
    library.parent.mkdir(parents=True)
    (tmp_path / "horovod" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    library.write_bytes(b"\x7fELF gloo")
    assert choose_backend(2) == ("horovod", "the installed Horovod was built without MPI")
    library.write_bytes(b"\x7fELF MPI_Comm_rank")
    assert choose_backend(2) == ("mpi", "the fastest one installed")


def test_ports_of_a_cluster_on_this_machine_stay_reserved() -> None:
    with held_ports(3) as ports:
        assert len(set(ports)) == 3
        for port in ports:
            with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
                other.bind(("127.0.0.1", port))
            with socket.socket() as worker:  # as TensorFlow does with TF_GRPC_REUSE_PORT
                worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                worker.bind(("127.0.0.1", port))
                worker.listen()
                socket.create_connection(("127.0.0.1", port), 5).close()
    for port in ports:
        with socket.socket() as other:
            other.bind(("127.0.0.1", port))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[networks.Network]:
    lacking = networks.missing()
    if lacking is not None:
        pytest.skip(lacking)
    network = networks.Network(tmp_path_factory.mktemp("network") / "ssh", hosts=2)
    yield network
    network.close()


@pytest.mark.multiprocess
@pytest.mark.timeout(180)
@pytest.mark.parametrize("backend", ["horovod", "mpi", "tf"])
def test_ranks_on_two_hosts(
    launch: Launch, program: list[str], network: networks.Network, backend: str
) -> None:
    needs(backend)
    hosts = ",".join(f"{host}:1" for host in network.hosts)
    options = ["--hosts", hosts, "--ssh", network.ssh, "--backend", backend, "--max-restarts", "0"]
    launch.start([*options, "--silence-timeout", "30"], [*program, backend])
    found = answers(launch, 2)
    assert [one[2:] for one in found] == [[2, 1, [2.0, 1.0]]] * 2
    assert [one[:2] for one in found] == [[backend, 0], [backend, 1]]


@pytest.mark.multiprocess
@pytest.mark.timeout(180)
def test_a_killed_training_resumes(launch: Launch) -> None:
    needs("horovod")
    train = ["python", "-m", "launcher.train", "--epochs", "4", "--model", "dnn"]
    train += ["--output", str(launch.directory / "training"), "--checkpoint-steps", "10"]
    options = ["-np", "2", "--backend", "horovod", "--max-restarts", "1", "--backoff", "0.1"]
    launch.start(options, train)
    launch.wait_until(lambda: launch.events("checkpoint"), seconds=90)
    victim = launch.events("rank_up")[1]
    assert victim["attempt"] == 0
    Path("/proc", str(victim["pid"])).stat()
    import psutil

    psutil.Process(victim["pid"]).kill()
    result = launch.finish(170)
    assert result.returncode == 0, result.transcript()
    assert launch.cause()["class"] == "killed"
    assert launch.cause()["rank"] == victim["rank"]
    summary = json.loads((launch.directory / "training" / "summary.json").read_text())
    assert summary["world_size"] == 2
    assert summary["resumed_from"]
