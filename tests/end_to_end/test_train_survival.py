"""What a run survives: being stopped in mid-epoch, a damaged checkpoint, another world size."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.train.checkpoint import CheckpointStore
from launcher.train.train_state import TrainState
from tests.end_to_end.test_train import TRAIN, _fingerprints, _summary
from tests.jobs import Job
from tests.processes import THREADS, Launcher

pytestmark = pytest.mark.slow

RUN = ["--model", "dnn", "--epochs", "4", "--batch-size", "4", "--deterministic"]


def _epochs(output: Path) -> list[dict[str, Any]]:
    """The epochs of a run, as its journal has them."""
    journal = output / "metrics.jsonl"
    if not journal.exists():
        return []
    lines = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    return [line for line in lines if line.get("event") == "epoch"]


def _wait_for(condition: Callable[[], object], job: Job, seconds: float = 40) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, job.wait(0).transcript()
        time.sleep(0.01)


def _first_epoch_done(output: Path) -> bool:
    return bool(_epochs(output))


@pytest.mark.multiprocess
@pytest.mark.timeout(180)
def test_a_stopped_run_goes_on_to_the_very_same_weights(
    mpirun: Launcher, single_process: Launcher, tmp_path: Path
) -> None:
    whole, stopped, fewer = tmp_path / "whole", tmp_path / "stopped", tmp_path / "fewer"
    mpirun(2, TRAIN, [*RUN, "--output", str(whole)]).check()

    # SIGTERM to one rank, not the one that writes: both leave at the same step, after saving.
    job = mpirun.start(2, TRAIN, [*RUN, "--output", str(stopped)])
    _wait_for(lambda: _first_epoch_done(stopped), job)
    job.rank_process(1).send_signal(signal.SIGTERM)
    result = job.wait(60)
    assert result.returncode == 143, result.transcript()
    assert result.orphans == ()
    assert "stopped by SIGTERM after step" in result.stdout[0]
    summary = _summary(stopped)
    assert summary["stopped"]
    checkpoints = sorted((stopped / "checkpoints").iterdir())
    assert int(checkpoints[-1].stem.removeprefix("step-")) == summary["steps"]
    assert summary["steps"] % 180 != 0, "stopped at the end of an epoch, which proves nothing"
    shutil.copytree(stopped, fewer)

    # At the end of an epoch nothing of the next one is used yet.
    ended, _ = CheckpointStore(whole / "checkpoints", keep=1).latest()
    assert ended is not None
    state = TrainState(**ended.meta["position"])
    assert (state.epoch, state.consumed, state.sums) == (4, 0, [0.0, 0.0, 0.0])

    # The rest of that epoch has the very batches that were left.
    mpirun(2, TRAIN, [*RUN, "--output", str(stopped), "--resume"]).check()
    assert _summary(stopped)["resumed_from"] == str(checkpoints[-1])
    assert _summary(stopped)["steps"] == _summary(whole)["steps"]
    assert set(_fingerprints(stopped)) == set(_fingerprints(whole))
    assert [epoch["epoch"] for epoch in _epochs(stopped)] == [0, 1, 2, 3]
    losses = [[epoch["loss"] for epoch in _epochs(output)] for output in (stopped, whole)]
    assert losses[0] == losses[1]

    # One rank instead of two, and the last checkpoint half written by a crash that synced nothing.
    last = sorted((fewer / "checkpoints").iterdir())[-1]
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    result = single_process(1, TRAIN, [*RUN, "--output", str(fewer), "--resume"]).check()
    assert "world size was 2, is now 1" in result.stdout[0]
    assert "is damaged" in result.stdout[0]
    assert _summary(fewer)["resumed_from"] != str(last)
    assert _summary(fewer)["accuracy"] > 0.93


@pytest.mark.multiprocess
@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("fixture", "options", "threads"),
    [
        ("mpirun", (), 2),
        ("horovodrun", ("--gloo",), 4),
        ("tf_cluster", (), 1),
        ("tf_cluster", (), 4),
    ],
)
def test_ranks_with_any_number_of_threads_save_when_told_to_stop(
    fixture: str,
    options: tuple[str, ...],
    threads: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    launcher: Launcher = request.getfixturevalue(fixture)
    job = launcher.start(
        2,
        TRAIN,
        [*RUN, "--epochs", "500", "--output", str(tmp_path / "out")],
        environment=dict.fromkeys(THREADS, str(threads)),
        options=options,
    )
    _wait_for(lambda: _first_epoch_done(tmp_path / "out"), job, 80)
    job.rank_process(1).send_signal(signal.SIGTERM)
    result = job.wait(120)
    # horovodrun itself ends with 1 whatever its ranks end with.
    assert result.returncode == (1 if fixture == "horovodrun" else 143), result.transcript()
    assert result.orphans == ()
    summary = _summary(tmp_path / "out")
    assert summary["stopped"]
    last = sorted((tmp_path / "out" / "checkpoints").iterdir())[-1]
    assert int(last.stem.removeprefix("step-")) == summary["steps"]


@pytest.mark.multiprocess
@pytest.mark.timeout(90)
def test_a_second_sigterm_ends_a_rank_that_hangs(mpirun: Launcher, tmp_path: Path) -> None:
    job = mpirun.start(2, TRAIN, [*RUN, "--epochs", "500", "--output", str(tmp_path)])
    _wait_for(lambda: _first_epoch_done(tmp_path), job)
    job.rank_process(0).suspend()  # rank 1 now waits in an all-reduce that never comes
    waiting = job.rank_process(1)
    waiting.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert waiting.is_running()
    waiting.send_signal(signal.SIGTERM)
    started = time.monotonic()
    result = job.wait(60)
    assert time.monotonic() - started < 15
    assert result.returncode == 143
    assert result.orphans == ()


@pytest.mark.multiprocess
@pytest.mark.timeout(90)
def test_checkpoints_of_something_else_are_refused(
    single_process: Launcher, tmp_path: Path
) -> None:
    first = ["--model", "dnn", "--epochs", "1", "--output", str(tmp_path)]
    single_process(1, TRAIN, first).check()
    again = single_process(1, TRAIN, first)
    assert again.returncode == 2
    assert "--resume" in again.stderr[0]
    other = single_process(1, TRAIN, [*first, "--model", "cnn", "--resume"])
    assert other.returncode == 2
    assert "belongs to another model or optimizer" in other.stderr[0]
    assert "hidden1/kernel" in other.stderr[0]
