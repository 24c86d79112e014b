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

HOROVOD_SUM = """
import json
import horovod.tensorflow as hvd
import tensorflow as tf
hvd.init()
total = hvd.allreduce(tf.constant([hvd.rank() + 1.0]), op=hvd.Sum)
print(json.dumps({"rank": hvd.rank(), "sum": float(total[0]), "gloo": bool(hvd.gloo_enabled())}))
"""

CLUSTER_SUM = """
import json
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
rank = strategy.cluster_resolver.task_id
value = tf.constant(rank + 1.0)
total = strategy.run(lambda: tf.distribute.get_replica_context().all_reduce("sum", value))
print(json.dumps({"rank": rank, "sum": float(total)}))
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
def test_horovodrun_gives_each_rank_its_answer(
    horovodrun: Launcher, script: Callable[[str], Path], options: list[str]
) -> None:
    result = horovodrun(2, script(HOROVOD_SUM), options=options)
    assert result.json() == [{"rank": rank, "sum": 3.0, "gloo": bool(options)} for rank in range(2)]


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_cluster_gives_each_rank_its_answer(
    tf_cluster: Launcher, script: Callable[[str], Path]
) -> None:
    result = tf_cluster(2, script(CLUSTER_SUM))
    assert result.json() == [{"rank": rank, "sum": 3.0} for rank in range(2)]


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
