"""What the processes of a job on one machine listen on."""

from pathlib import Path

import pytest

from tests.launcher.launches import Launch

SOURCE = """
import os, sys, time
from pathlib import Path
import tensorflow as tf
import syncbn
ranks = syncbn.init()
ranks.barrier()
preloaded = os.environ.get("LD_PRELOAD", "") + os.environ.get("SYNCBN_LISTEN_ON", "")
Path(sys.argv[1], f"preloaded-{ranks.rank}").write_text(preloaded)
Path(sys.argv[1], f"up-{ranks.rank}").touch()
while not Path(sys.argv[1], "end").exists():
    time.sleep(0.1)
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(150)
@pytest.mark.parametrize("backend", ["horovod", "mpi", "tf"])
def test_a_job_on_one_machine_listens_on_loopback(
    launch: Launch, backend: str, tmp_path: Path
) -> None:
    program = ["python", "-c", SOURCE, str(tmp_path)]
    launch.start(["-np", "2", "--backend", backend, "--max-restarts", "0"], program)
    launch.wait_until(lambda: all((tmp_path / f"up-{rank}").exists() for rank in (0, 1)), 100)
    found = [
        (process.name(), connection.laddr.ip)
        for process in launch.job.alive()
        for connection in process.net_connections()
        if connection.status == "LISTEN"
    ]
    (tmp_path / "end").touch()
    assert launch.finish(140).returncode == 0
    assert {ip for _, ip in found} <= {"127.0.0.1", "::ffff:127.0.0.1"}, found
    assert found
    if backend == "mpi":  # what keeps mpirun on loopback is not handed down
        assert (tmp_path / "preloaded-0").read_text() == ""
