"""What only training itself can run into, under a launcher."""

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.documents import strict
from tests.launcher.launches import Launch

pytestmark = pytest.mark.multiprocess


@pytest.mark.timeout(170)
def test_the_launcher_calls_it_diverged_and_does_not_try_again(
    launch: Launch,
) -> None:
    program = [
        "python",
        "-m",
        "launcher.train",
        "--learning-rate",
        "1e30",
        "--model",
        "dnn",
        "--resume",
    ]
    launch.start(["-np", "2", "--backend", "mpi"], program)
    result = launch.finish(150)
    assert result.returncode == 1
    assert launch.cause()["class"] == "diverged"
    assert "on localhost diverged: step 2 is not finite: the output of layer" in result.output
    assert "lower the learning rate" in result.output
    assert launch.events("restarting") == []
    for path in launch.run.glob("*.json*"):
        assert list(strict(path))


@pytest.mark.timeout(240)
def test_a_restart_does_not_meet_the_lock_of_the_attempt_before(launch: Launch) -> None:
    training = ["--model", "dnn", "--batch-size", "4", "--epochs", "4", "--checkpoint-steps", "20"]
    program = ["python", "-m", "launcher.train", *training, "--resume"]
    launch.start(["-np", "2", "--backend", "mpi", "--backoff", "0"], program)
    launch.wait_until(lambda: launch.events("checkpoint"), seconds=100)
    holder = json.loads((launch.run / ".trainer.lock").read_text())
    assert (holder["run"], holder["attempt"]) == (launch.run.name, 0)
    psutil.Process(holder["pid"]).send_signal(signal.SIGKILL)
    result = launch.finish(220)
    assert result.returncode == 0, result.transcript()
    assert len(launch.events("restarting")) == 1
    assert json.loads((Path(launch.run) / ".trainer.lock").read_text())["attempt"] == 1
