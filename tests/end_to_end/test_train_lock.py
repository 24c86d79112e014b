"""Two trainers that are given one output directory: the second one leaves, and touches nothing."""

import signal
from pathlib import Path

import pytest

from tests.end_to_end.test_train import TRAIN
from tests.end_to_end.test_train_survival import _wait_for
from tests.processes import Launcher

pytestmark = pytest.mark.multiprocess

RUN = ["--model", "dnn", "--batch-size", "4"]


def _contents(directory: Path) -> dict[str, int]:
    """The files of a directory that somebody trains in, and the size of those that do not grow."""
    growing = ("metrics.jsonl", "step-")
    files = [p for p in directory.rglob("*") if p.is_file() and not p.name.startswith(".step")]
    return {p.name: p.stat().st_size for p in files if not p.name.startswith(growing)}


@pytest.mark.timeout(180)
def test_the_second_trainer_in_a_directory_leaves(
    mpirun: Launcher, single_process: Launcher, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job = mpirun.start(2, TRAIN, [*RUN, "--epochs", "500", "--output", str(output)])
    logs = [output / "logs" / f"rank-{rank}.log" for rank in range(2)]
    _wait_for(
        lambda: all(log.exists() and "first step" in log.read_text() for log in logs),
        job,
        seconds=80,
    )
    holder = job.rank_process(0)
    before = _contents(output)
    for resume in (["--resume"], []):
        second = mpirun(2, TRAIN, [*RUN, "--epochs", "1", *resume, "--output", str(output)])
        assert second.returncode == 2, second.transcript()
        assert second.stderr[1] == ""
        (line,) = second.stderr[0].splitlines()
        assert f"{output} is in use by another trainer (process {holder.pid} on " in line
        assert "since 20" in line
        assert "--output" in line
        assert second.orphans == ()
    assert _contents(output) == before
    assert holder.is_running()

    # Nobody has to clean up after a trainer that is killed.
    for process in job.alive():
        process.send_signal(signal.SIGKILL)
    job.wait(100)
    again = [*RUN, "--epochs", "1", "--resume", "--output", str(output)]
    single_process(1, TRAIN, again).check()
