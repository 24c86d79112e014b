"""Jobs over several containers of a real engine, and what becomes of them when one is lost.

That both of a Horovod job end with equal weights stands in test_compose.py.
"""

import json
import re
import time

import pytest

from tests.docker.containers import Engine
from tests.processes import REPOSITORY

pytestmark = [pytest.mark.docker, pytest.mark.timeout(400, func_only=True)]

# Long enough to be in the middle of when something happens to it, and easy on the cores.
_LONG = ("--model", "unhurried:network", "--epochs", "200", "--checkpoint-steps", "10")
_UNHURRIED = (
    *("--volume", f"{REPOSITORY}/tests/unhurried.py:/models/unhurried.py:ro"),
    *("--env", "PYTHONPATH=/models", "--env", "HOROVOD_CYCLE_TIME=5"),
)
over_either = pytest.mark.parametrize("backend", ["horovod", "mpi"])
_QUICK = {"grace": 2, "silence_timeout": 6, "restart": {"backoff": 0.5}}


def train(*more: str) -> list[str]:
    command = ["python", "-m", "launcher.train", "--model", "dnn", "--output", "/runs/digits"]
    return ["--", *command, "--resume", *more]


def join(*flags: str, **fields: object) -> list[str]:
    job = {"name": "digits", "backend": "horovod", **_QUICK, **fields}
    return ["join", "--job", json.dumps(job), *flags]


def test_two_containers_train_with_tensorflows_own_engine_and_end_with_equal_weights(
    engine: Engine,
) -> None:
    runs = [engine.volume(), engine.volume()]
    head, worker = (
        engine.start(
            name,
            *join(*flags, backend="tf"),
            *train("--epochs", "2"),
            options=("--volume", f"{volume}:/runs"),
        )
        for name, flags, volume in (
            ("head", ("--workers", "1"), runs[0]),
            ("worker", ("--head", "head"), runs[1]),
        )
    )
    assert engine.wait(head, 180) == 0, engine.log(head)
    assert engine.wait(worker, 30) == 0, engine.log(worker)
    assert "2 ranks over tf" in engine.log(head)
    digests = [
        re.findall(r"weights ([0-9a-f]{8})", engine.read(volume, f"digits/logs/rank-{rank}.log"))
        for rank, volume in enumerate(runs)
    ]
    assert digests[0]
    assert digests[0] == digests[1]
    summary = json.loads(engine.read(runs[0], "digits/summary.json"))
    assert (summary["world_size"], summary["epochs"]) == (2, 2)


@over_either
def test_a_killed_container_is_named_and_taken_in_again_and_one_told_to_stop_lets_all_save(
    engine: Engine, backend: str
) -> None:
    head, worker = _pair(
        engine, backend=backend, restart={"max_restarts": 1}, container={"join_timeout": 90}
    )
    engine("kill", worker)
    killed = time.monotonic()
    engine.says(head, "launcher: lost host: rank 1 on worker-1@worker was lost", 60)
    assert time.monotonic() - killed < 45, engine.log(head)
    engine("start", worker)
    engine.says(head, "resumes from /runs/digits/checkpoints", 120)
    # From here on there is no restart left. The entry point is process 1, and hears of the stop.
    engine("stop", "--time", "40", worker, timeout=90)
    assert engine.inspect(worker)["State"]["ExitCode"] == 143, engine.log(worker)
    assert engine.wait(head, 60) == 1
    assert "launcher: preempted: rank 1 on worker-1@worker" in engine.log(head)


@over_either
def test_a_container_cut_from_the_network_ends_its_ranks_and_the_job_names_it(
    engine: Engine, backend: str
) -> None:
    limits = {"restart": {"max_restarts": 0}, "container": {"join_timeout": 20}}
    head, worker = _pair(engine, backend=backend, **limits)
    words = join("--head", "head", name="other", container={"join_timeout": 4})
    stranger = engine.start("stranger", *words, *train())
    assert engine.wait(stranger, 60) == 1
    assert "this is job 'digits', not 'other'" in engine.log(stranger)
    engine("network", "disconnect", engine.network, worker)
    cut = time.monotonic()
    assert engine.wait(head, 60) == 1, engine.log(head)
    assert time.monotonic() - cut < 45
    assert "launcher: lost host: rank 1 on worker-1@worker" in engine.log(head)
    # The one that was cut off ends by itself, so that nobody trains on alone.
    assert engine.wait(worker, 90) == 1
    assert "lost host: head:29400" in engine.log(worker)


def _pair(engine: Engine, **fields: object) -> tuple[str, str]:
    """Two containers in the middle of a long training, with a checkpoint behind them."""
    options = ("--volume", f"{engine.volume()}:/runs", *_UNHURRIED)
    words = [*join("--workers", "1", **fields), *train(*_LONG)]
    head = engine.start("head", *words, options=options)
    words = [*join("--head", "head", **fields), *train(*_LONG)]
    worker = engine.start("worker", *words, options=options)
    engine.says(head, "epoch   1", 150)
    return head, worker
