"""`launcher health`: what a container's health check sees of the ranks beside it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.heartbeat import Beat, encode
from tests.processes import REPOSITORY


@pytest.mark.parametrize(
    ("phase", "age", "code"),
    [("training", 0, 0), ("training", 120, 1), ("evaluating", 120, 0), ("starting", 120, 0)],
)
def test_only_a_rank_without_training_progress_is_unhealthy(
    tmp_path: Path,
    phase: str,
    age: float,
    code: int,
) -> None:
    record = tmp_path / "heartbeat"
    record.write_bytes(encode(Beat(phase, 7, None, time.time() - age)))  # type: ignore[arg-type]
    rank = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        env={**os.environ, "LAUNCHER_HEARTBEAT": str(record)},
        stdin=subprocess.PIPE,
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "launcher", "health", "--limit", "60"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        rank.kill()
        rank.wait()
        if rank.stdin is not None:
            rank.stdin.close()
    assert done.returncode == code, done.stderr
    assert (f"process {rank.pid} has finished no step for 1" in done.stderr) == bool(code)
