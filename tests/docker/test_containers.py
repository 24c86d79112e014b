"""Jobs over several containers of a real engine, and what becomes of them when one is lost."""

import json
import re
import time

import pytest

from tests.docker.containers import Engine

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300, func_only=True)]

_DIGEST = re.compile(r"weights ([0-9a-f]{64})")
# Long enough to be in the middle of when something happens to it.
LONG = ("--epochs", "60", "--checkpoint-steps", "10")


def train(*more: str) -> list[str]:
    command = ["python", "-m", "launcher.train", "--model", "dnn", "--output", "/runs/digits"]
    return ["--", *command, "--resume", *more]


def join(*flags: str) -> list[str]:
    quick = ["--backend", "horovod", "--grace", "2", "--silence-timeout", "4", "--backoff", "0.5"]
    return ["join", "--name", "digits", *quick, *flags]


def test_the_image_holds_no_compiler_and_no_root(engine: Engine) -> None:
    inside = "id -u; for one in gcc g++ make cmake ld sshd pip; do command -v $one; done; ls /src"
    run = ("run", "--rm", "--entrypoint", "sh", engine.image, "-c", inside)
    assert engine(*run).split() == ["1000", "/opt/syncbn/bin/pip"]
    health = json.loads(engine("image", "inspect", engine.image))[0]["Config"]["Healthcheck"]
    assert health["Test"] == ["CMD", "launcher", "health"]


def test_one_container_trains_on_two_ranks_without_root_on_a_read_only_disk(
    engine: Engine,
) -> None:
    words = ["run", "-np", "2", "--backend", "horovod", "--"]
    words += ["python", "-m", "launcher.train", "--epochs", "1", "--model", "dnn"]
    container = engine.start("alone", *words, options=("--volume", f"{engine.volume()}:/runs"))
    assert engine.wait(container, 120) == 0, engine.log(container)
    assert "2 ranks over horovod" in engine.log(container)
    state = engine.inspect(container)
    assert state["Config"]["User"] == "1000:0"
    assert state["HostConfig"]["ReadonlyRootfs"] is True


@pytest.mark.parametrize("backend", ["horovod", "tf"])
def test_two_containers_train_and_end_with_equal_weights(engine: Engine, backend: str) -> None:
    runs = [engine.volume(), engine.volume()]
    flags = ["--backend", backend]
    head = engine.start(
        "head",
        *join("--workers", "1", *flags),
        *train("--epochs", "2"),
        options=("--volume", f"{runs[0]}:/runs"),
    )
    worker = engine.start(
        "worker",
        *join("--head", "head", *flags),
        *train("--epochs", "2"),
        options=("--volume", f"{runs[1]}:/runs"),
    )
    assert engine.wait(head, 150) == 0, engine.log(head)
    assert engine.wait(worker, 20) == 0, engine.log(worker)
    assert f"2 ranks over {backend}" in engine.log(head)
    digests = [_digest(engine, volume, rank) for rank, volume in enumerate(runs)]
    assert digests[0] == digests[1]
    summary = json.loads(_read(engine, runs[0], "digits/summary.json"))
    assert (summary["world_size"], summary["epochs"]) == (2, 2)


def test_a_killed_container_ends_the_job_with_its_name(engine: Engine) -> None:
    head, worker = _pair(engine, "--join-timeout", "6", "--max-restarts", "1")
    engine("kill", worker)
    started = time.monotonic()
    assert engine.wait(head, 60) == 1
    log = engine.log(head)
    assert time.monotonic() - started < 45, log
    assert re.search(r"launcher: lost host: rank 1 on worker-1@worker was lost", log), log
    assert "worker 1 (worker) has not come within 6 s" in log


def test_a_killed_container_that_comes_back_is_taken_in_and_the_job_resumes(
    engine: Engine,
) -> None:
    head, worker = _pair(engine, "--join-timeout", "60")
    engine("kill", worker)
    engine.says(head, "launcher: lost host: rank 1", 30)
    engine("start", worker)
    engine.says(head, "goes on from /runs/digits/checkpoints", 90)
    engine("stop", "--time", "40", head)
    assert engine.inspect(head)["State"]["ExitCode"] == 143, engine.log(head)


def test_a_container_cut_from_the_network_ends_its_ranks_and_the_job_names_it(
    engine: Engine,
) -> None:
    head, worker = _pair(engine, "--join-timeout", "6", "--max-restarts", "0")
    engine("network", "disconnect", engine.network, worker)
    cut = time.monotonic()
    assert engine.wait(head, 60) == 1, engine.log(head)
    assert time.monotonic() - cut < 40
    assert "launcher: lost host: rank 1 on worker-1@worker" in engine.log(head)
    # The one that was cut off ends by itself, so that nobody trains on alone.
    assert engine.wait(worker, 60) == 1
    assert "lost host: head:29400" in engine.log(worker)


def test_a_worker_that_is_told_to_stop_lets_all_save(engine: Engine) -> None:
    head, worker = _pair(engine, "--max-restarts", "0")
    engine("stop", "--time", "40", worker)
    assert engine.inspect(worker)["State"]["ExitCode"] == 143, engine.log(worker)
    assert engine.wait(head, 60) == 1
    assert "launcher: preempted:" in engine.log(head)


def test_a_stranger_is_turned_away_and_the_missing_worker_is_named(engine: Engine) -> None:
    head = engine.start("head", *join("--workers", "1", "--join-timeout", "6"), *train())
    words = join("--head", "head", "--join-timeout", "4", "--name", "other")
    stranger = engine.start("stranger", *words, *train())
    assert engine.wait(stranger, 60) == 1
    assert "this is job 'digits', not 'other'" in engine.log(stranger)
    assert engine.wait(head, 60) == 1
    assert "worker 1 has not come within 6 s" in engine.log(head)


def _pair(engine: Engine, *flags: str) -> tuple[str, str]:
    """Two containers in the middle of a long training, with a checkpoint behind them."""
    volume = ("--volume", f"{engine.volume()}:/runs")
    words = [*join("--workers", "1", *flags), *train(*LONG)]
    head = engine.start("head", *words, options=volume)
    words = [*join("--head", "head", *flags), *train(*LONG)]
    worker = engine.start("worker", *words, options=volume)
    engine.says(head, "epoch   2", 120)
    return head, worker


def _digest(engine: Engine, volume: str, rank: int) -> str:
    found = _DIGEST.findall(_read(engine, volume, f"digits/logs/rank-{rank}.log"))
    assert found, "no digest of the weights in the log"
    return str(found[-1])


def _read(engine: Engine, volume: str, path: str) -> str:
    place = ("--volume", f"{volume}:/runs", "--entrypoint", "cat")
    return engine("run", "--rm", *place, engine.image, f"/runs/{path}")
