"""The test launchers themselves: ranks answer, limits hold, and nothing outlives a job."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.jobs import JobTimeoutError
from tests.processes import Launcher

MPI_SUM = """
import json
from mpi4py import MPI
world = MPI.COMM_WORLD
print(json.dumps({"rank": world.rank, "sum": world.allreduce(world.rank + 1)}))
"""

HOROVOD_PLACE = """
import json, os
gloo = "HOROVOD_GLOO_RENDEZVOUS_ADDR" in os.environ
kind = "HOROVOD" if gloo else "OMPI_COMM_WORLD"
print(json.dumps([int(os.environ[f"{kind}_RANK"]), int(os.environ[f"{kind}_SIZE"]), gloo]))
"""

CLUSTER_PLACE = """
import json, os, socket
place = json.loads(os.environ["TF_CONFIG"])
workers, rank = place["cluster"]["worker"], place["task"]["index"]
with socket.socket() as mine:
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    mine.bind(("127.0.0.1", int(workers[rank].rsplit(":", 1)[1])))
    mine.listen()
print(json.dumps([rank, len(workers)]))
"""

# A rank that leaves its session and parent, the hardest to find again.
RUNAWAY = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("started", flush=True)
time.sleep({seconds})
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_mpirun_gives_each_rank_its_answer(mpirun: Launcher, script: Callable[[str], Path]) -> None:
    result = mpirun(3, script(MPI_SUM))
    assert result.json() == [{"rank": rank, "sum": 6} for rank in range(3)]
    assert result.orphans == ()


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
@pytest.mark.parametrize("options", [[], ["--gloo"]], ids=["mpi", "gloo"])
def test_horovodrun_gives_each_rank_its_place(
    horovodrun: Launcher, script: Callable[[str], Path], options: list[str]
) -> None:
    result = horovodrun(2, script(HOROVOD_PLACE), options=options)
    assert result.json() == [[rank, 2, bool(options)] for rank in range(2)]


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_cluster_gives_each_rank_its_place_and_a_port(
    tf_cluster: Launcher, script: Callable[[str], Path]
) -> None:
    result = tf_cluster(2, script(CLUSTER_PLACE))
    assert result.json() == [[rank, 2] for rank in range(2)]


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_failing_rank_fails_the_job_and_is_shown(
    mpirun: Launcher, script: Callable[[str], Path]
) -> None:
    result = mpirun(2, script("import sys; print('last words'); sys.exit(3)"))
    assert result.returncode == 3
    with pytest.raises(AssertionError, match=r"ended with 3[\s\S]*last words"):
        result.check()


@pytest.mark.timeout(30)
def test_orphans_are_reported_and_killed(
    single_process: Launcher, script: Callable[[str], Path]
) -> None:
    job = single_process.start(1, script(RUNAWAY.format(seconds=0)))
    result = job.wait(20)
    assert len(result.orphans) == 1
    assert "time.sleep(600)" in result.orphans[0]
    assert job.alive() == []


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_time_limit_kills_the_whole_tree(mpirun: Launcher, script: Callable[[str], Path]) -> None:
    job = mpirun.start(2, script(RUNAWAY.format(seconds=600)))
    with pytest.raises(
        JobTimeoutError, match=r"no end within 5 s[\s\S]*rank 1, stdout -----\nstarted"
    ):
        job.wait(5)
    assert job.alive() == []


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_one_rank_can_be_killed(mpirun: Launcher, script: Callable[[str], Path]) -> None:
    job = mpirun.start(2, script(RUNAWAY.format(seconds=600)))
    while job.stdout() != ("started\n", "started\n"):
        time.sleep(0.05)
    victim = job.rank_process(1)
    victim.send_signal(signal.SIGKILL)
    assert job.wait(30).returncode != 0
    assert not psutil.pid_exists(victim.pid)


@pytest.mark.timeout(30)
def test_ranks_inherit_no_surrounding_job(
    single_process: Launcher, script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOROVOD_RANK", "7")
    monkeypatch.setenv("TF_CONFIG", json.dumps({"task": {"type": "worker", "index": 7}}))
    names = "['HOROVOD_RANK', 'TF_CONFIG']"
    result = single_process(
        1, script(f"import json, os; print(json.dumps([n in os.environ for n in {names}]))")
    )
    assert result.json() == [[False, False]]
