"""The pods of an MPIJob as the operator makes them: an ssh server without root, and who uses it."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.docker.conftest import build
from tests.docker.containers import Engine

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240, func_only=True)]


@pytest.fixture(scope="module")
def mpi_image(image: str) -> str:
    built = build("mpi", "syncbn:mpi")
    assert built.returncode == 0, built.stderr[-4000:]
    return "syncbn:mpi"


@pytest.mark.parametrize("backend", ["mpi", "horovod"])
def test_a_launcher_reaches_workers_over_ssh_and_all_end_with_equal_weights(
    engine: Engine, mpi_image: str, tmp_path: Path, backend: str
) -> None:
    engine.image = mpi_image
    keys = _keys(engine, tmp_path)
    ssh = ("--volume", f"{keys}:/home/trainer/.ssh:ro")
    runs = ("--volume", f"{engine.volume()}:/runs")
    for name in ("worker-0", "worker-1"):
        engine.start(name, options=(*ssh, *runs, "--entrypoint", "serve-ssh"))
    hosts = ["run", "-np", "2", "--backend", backend, "--hosts", "worker-0:1,worker-1:1"]
    train = ["python", "-m", "launcher.train", "--model", "dnn", "--epochs", "2"]
    words = [*hosts, "--", *train, "--output", "/runs/digits"]
    head = engine.start("launcher", *words, options=(*ssh, *runs))
    assert engine.wait(head, 150) == 0, engine.log(head)
    assert f"2 ranks over {backend}" in engine.log(head)
    digests = {
        re.findall(r"weights ([0-9a-f]{64})", _read(engine, runs, rank))[-1] for rank in (0, 1)
    }
    assert len(digests) == 1


def test_the_server_takes_the_jobs_key_alone_and_has_one_of_its_own(
    engine: Engine, mpi_image: str, tmp_path: Path
) -> None:
    engine.image = mpi_image
    keys, others = _keys(engine, tmp_path / "a"), _keys(engine, tmp_path / "b")
    worker = engine.start(
        "worker-0",
        options=("--volume", f"{keys}:/home/trainer/.ssh:ro", "--entrypoint", "serve-ssh"),
    )
    engine.says(worker, "Server listening", 20)
    trials = {}
    for name, volume in (("own", keys), ("other", others)):
        options = ("--volume", f"{volume}:/home/trainer/.ssh:ro", "--entrypoint", "ssh")
        client = engine.start(name, "-o", "BatchMode=yes", "worker-0", "id", "-u", options=options)
        trials[name] = (engine.wait(client, 30), engine.log(client))
    assert trials["own"] == (0, "1000\n")
    assert trials["other"][0] == 255
    assert "Permission denied" in trials["other"][1]
    assert not engine(
        "run", "--rm", "--entrypoint", "sh", mpi_image, "-c", "ls /etc/ssh/*key* || true"
    )


def _keys(engine: Engine, directory: Path) -> str:
    """A volume with a job's key as the operator mounts it: of root, readable by all."""
    directory.mkdir(exist_ok=True)
    key = directory / "id_rsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", key], check=True)
    volume = engine.volume()
    holder = engine.start(
        f"keys-{time.monotonic_ns()}",
        "-c",
        "sleep 60",
        options=("--user", "0", "--volume", f"{volume}:/keys", "--entrypoint", "sh"),
    )
    public = key.with_suffix(".pub")
    for source, name in ((key, "id_rsa"), (public, "id_rsa.pub"), (public, "authorized_keys")):
        source.chmod(0o644)
        engine("cp", str(source), f"{holder}:/keys/{name}")
    engine("kill", holder)
    return volume


def _read(engine: Engine, runs: tuple[str, str], rank: int) -> str:
    path = f"/runs/digits/logs/rank-{rank}.log"
    return engine("run", "--rm", *runs, "--entrypoint", "cat", engine.image, path)
