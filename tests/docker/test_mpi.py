"""The pods of an MPIJob as the operator makes them: an ssh server without root, and who uses it."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docker.conftest import build
from tests.docker.containers import Engine

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300, func_only=True)]


@dataclass(frozen=True)
class Pods:
    """Two workers that serve ssh: `options` are those of a pod of the same job."""

    engine: Engine
    options: tuple[str, ...]
    runs: str


@pytest.fixture(scope="module")
def pods(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    built = build("mpi", "syncbn:mpi")
    assert built.returncode == 0, built.stderr[-4000:]
    with Engine("syncbn:mpi") as engine:
        runs = engine.volume()
        keys = job_keys(engine, tmp_path_factory.mktemp("keys"))
        options = (*key_mount(keys), "--volume", f"{runs}:/runs")
        for name in ("worker-0", "worker-1"):
            worker = engine.start(name, options=(*options, "--entrypoint", "serve-ssh"))
            engine.says(worker, "Server listening", 30)
        yield Pods(engine, options, runs)


@pytest.mark.parametrize("backend", ["mpi", "horovod"])
def test_a_launcher_reaches_workers_over_ssh_and_all_end_with_equal_weights(
    pods: Pods, backend: str
) -> None:
    engine = pods.engine
    hosts = ["run", "-np", "2", "--backend", backend, "--hosts", "worker-0:1,worker-1:1"]
    train = ["python", "-m", "launcher.train", "--model", "dnn", "--epochs", "1"]
    words = [*hosts, "--", *train, "--output", f"/runs/{backend}"]
    head = engine.start(f"launcher-{backend}", *words, options=pods.options)
    assert engine.wait(head, 200) == 0, engine.log(head)
    assert f"2 ranks over {backend}" in engine.log(head)
    logs = [engine.read(pods.runs, f"{backend}/logs/rank-{rank}.log") for rank in (0, 1)]
    digests = {re.findall(r"weights ([0-9a-f]{8})", log)[-1] for log in logs}
    assert len(digests) == 1


def test_the_server_takes_the_jobs_key_alone_and_has_one_of_its_own(
    pods: Pods, tmp_path: Path
) -> None:
    engine = pods.engine
    trials = {}
    for name, options in (
        ("own", pods.options),
        ("other", key_mount(job_keys(engine, tmp_path))),
    ):
        words = ("-o", "BatchMode=yes", "worker-0", "id", "-u")
        client = engine.start(name, *words, options=(*options, "--entrypoint", "ssh"))
        trials[name] = (engine.wait(client, 60), engine.log(client))
    assert trials["own"] == (0, "1000\n")
    assert trials["other"][0] == 255
    assert "Permission denied" in trials["other"][1]
    look = ("--entrypoint", "sh", engine.image, "-c", "ls /etc/ssh/*key* || true")
    assert not engine("run", "--rm", *look)


def key_mount(keys: str) -> tuple[str, ...]:
    return ("--volume", f"{keys}:/home/trainer/.ssh:ro")


def job_keys(engine: Engine, directory: Path) -> str:
    """A volume with a job's key as the operator mounts it: of root, readable by all."""
    key = directory / "id_rsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", key], check=True)
    volume = engine.volume()
    holder = engine.create("keys", options=("--volume", f"{volume}:/keys"))
    public = key.with_suffix(".pub")
    for source, name in ((key, "id_rsa"), (public, "id_rsa.pub"), (public, "authorized_keys")):
        source.chmod(0o644)
        engine("cp", str(source), f"{holder}:/keys/{name}")
    return volume
