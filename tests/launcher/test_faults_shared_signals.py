"""Slurm sends SIGTERM to all processes of a step at once, to preempt a job even twice.

tests/slurm does it with a real Slurm; here the test sends the signals itself.
"""

import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from launcher.runs.layout import log_path
from tests.launcher.launches import Launch

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(60)]

# Saves for longer than the time within which mpirun, or an agent that is told to end, kills a rank.
PROGRAM = """
import os, signal, sys, time
received = []
signal.signal(signal.SIGTERM, lambda *_: received.append(1))
open(f"ready-{os.environ['LAUNCHER_RANK']}", "w").close()
while not received:
    time.sleep(0.05)
end = time.monotonic() + 6
while time.monotonic() < end:
    time.sleep(0.05)
print(f"saved after {len(received)} signals", flush=True)
sys.exit(143)
"""


@pytest.mark.parametrize("backend", ["local", "mpi"])
def test_ranks_save_though_every_process_is_signalled(
    launch: Launch, backend: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch.start(
        ["-np", "2", "--backend", backend],
        ["python", str(program)],
        environment={"SLURM_JOB_ID": "1"},
    )
    ready = [launch.directory / f"ready-{rank}" for rank in range(2)]
    launch.wait_until(lambda: all(path.exists() for path in ready))
    time.sleep(0.5)
    for _ in range(2):
        for process in launch.job.alive():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
    result = launch.finish()
    assert result.returncode == 143, result.transcript()
    for rank in range(2):
        lines = log_path(launch.run, 0, rank).read_text().splitlines()
        # At most those of the test: the agents add none.
        assert lines[-1:] in (["saved after 1 signals"], ["saved after 2 signals"]), lines
