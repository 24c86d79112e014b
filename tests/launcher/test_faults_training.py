"""What only training itself can run into, under a launcher."""

import json
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.documents import strict
from tests.launcher.launches import Launch, note
from tests.launcher.small_disks import run_on_small_disk
from tests.processes import Launcher

pytestmark = pytest.mark.multiprocess


@pytest.mark.timeout(170)
def test_the_launcher_classifies_divergence_and_does_not_restart(
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
    leaving = [e["time"] for e in launch.events("beat") if e["phase"] == "leaving"]
    seconds = launch.events("done")[-1]["time"] - leaving[0]
    note("a loss that is not finite (--learning-rate 1e30)", seconds, result)
    assert result.returncode == 1
    assert launch.cause()["class"] == "diverged"
    assert "on localhost diverged: step 2 is not finite: the output of layer" in result.output
    assert "lower the learning rate" in result.output
    assert launch.events("restarting") == []
    for path in launch.run.glob("*.json*"):
        assert list(strict(path))


@pytest.mark.timeout(240)
def test_a_restart_gets_the_lock_of_the_previous_attempt(launch: Launch) -> None:
    training = ["--model", "dnn", "--batch-size", "4", "--epochs", "1", "--checkpoint-steps", "20"]
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


@pytest.mark.timeout(170)
def test_the_rank_that_received_sigterm_is_named(launch: Launch) -> None:
    training = ["--model", "dnn", "--batch-size", "4", "--epochs", "50", "--checkpoint-steps", "20"]
    program = ["python", "-m", "launcher.train", *training]
    launch.start(["-np", "2", "--backend", "horovod", "--max-restarts", "0"], program)
    launch.wait_until(lambda: launch.events("checkpoint"), seconds=100)
    told = [p for p in launch.job.alive() if _is_trainer(p) and p.environ()["HOROVOD_RANK"] == "1"]
    assert len(told) == 1
    told[0].send_signal(signal.SIGTERM)
    result = launch.finish(60)
    assert result.returncode == 1, result.transcript()
    assert "preempted: rank 1 on localhost received a SIGTERM" in result.output
    # Rank 0 may end before rank 1: it reports that it ends because of another rank.
    last = {beat["rank"]: beat["phase"] for beat in launch.events("beat")}
    assert last[0] == "leaving", last


def _is_trainer(process: psutil.Process) -> bool:
    return process.cmdline()[1:3] == ["-m", "launcher.train"]


# Its checkpoint has 620 kB.
DISK = ["--model", "dnn", "--epochs", "8", "--keep-checkpoints", "9"]


@pytest.mark.timeout(180)
def test_a_disk_full_while_training_saves(tmp_path: Path) -> None:
    place = tmp_path / "small"
    command = [sys.executable, "-m", "launcher", "run", "-np", "2", "--backend", "mpi"]
    command += ["--max-restarts", "0", "-o", str(place / "runs"), "--"]
    command += ["python", "-m", "launcher.train", *DISK]
    seen = run_on_small_disk(place, "2200k", command)
    said = seen["stdout"] + seen["stderr"]
    assert seen["code"] == 1, said
    assert "Traceback" not in said
    assert "disk full: rank 0 on localhost could not write after step" in said
    assert "/checkpoints/step-" in said
    assert "kB free" in said
    assert "hint: a disk is full: free space" in said
    assert len([name for name in seen["files"] if name.endswith(".npz")]) == 3
    assert not [name for name in seen["files"] if ".part" in name]
    assert seen["free"] > 100_000
    assert seen["texts"]["report.html"].rstrip().endswith("</html>")
    events = [json.loads(line) for line in seen["texts"]["journal.jsonl"].splitlines()]
    assert events[-1]["result"] == "failed"
    assert events[-1]["cause"]["class"] == "disk full"
    assert json.loads(seen["texts"]["summary.json"])["failure"]["class"] == "disk full"


@pytest.mark.timeout(120)
def test_partial_files_of_a_killed_attempt_are_removed(
    single_process: Launcher, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    stale = [
        tmp_path / "checkpoints" / ".step-0000000005.npz.part",
        tmp_path / ".summary.json.part",
    ]
    for path in stale:
        path.write_bytes(bytes(1000))
    run = ["--model", "dnn", "--epochs", "1", "--output", str(tmp_path)]
    single_process(1, "launcher.train", run).check()
    assert not any(path.exists() for path in stale)
