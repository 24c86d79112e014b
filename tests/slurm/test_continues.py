"""Jobs that Slurm queues again: after preemption, their time limit, the loss of a node."""

import signal
from collections.abc import Sequence

import numpy as np
import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import QUICK, Jobs, training
from tests.waiting import until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(280)]

LONG = training(epochs=8, batch_size=16)


def _equal(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    return len(first) == len(second) > 0 and all(map(np.array_equal, first, second))


@pytest.mark.parametrize("partition", ["main", "graceful"])
def test_a_preempted_job_ends_with_the_very_same_weights(
    jobs: Jobs, cluster: Cluster, partition: str
) -> None:
    flags = ("--backend", "mpi", "--partition", partition)
    alone = jobs.submit("alone", *flags, program=LONG)
    assert jobs.wait("alone") == 0
    number = jobs.submit("preempted", *flags, program=LONG)
    jobs.trains("preempted", number)
    cluster("srun", "--partition=urgent", "--nodes=2", "--exclusive", "true", timeout=60)
    found = jobs.status("preempted")
    assert (found["state"], found["slurm"]["restarts"]) == ("queued", 1)
    assert jobs.wait("preempted", seconds=150) == 0
    log = jobs.log("preempted", number)
    assert log.count("the state is saved") == 1
    assert "resumes from" in log
    assert jobs.status("preempted")["run"]["attempt"] == 1
    assert _equal(jobs.weights("alone", alone), jobs.weights("preempted", number))


def test_at_its_time_limit_a_job_saves_and_continues(jobs: Jobs) -> None:
    number = jobs.submit("limited", "--time", "1", program=training(epochs=2000))
    jobs.says("limited", number, "the state is saved", 90)
    jobs.says("limited", number, "is queued again", 30)
    jobs.says("limited", number, "resumes from", 60)
    # More than one where the signal came before the first step.
    assert jobs.status("limited")["run"]["attempt"] >= 1
    assert jobs("cancel", "limited", "--target", "slurm").stdout == "limited: stopped\n"


def test_without_requeue_a_job_saves_at_its_time_limit_and_ends(jobs: Jobs) -> None:
    flags = ("--time", "1", "--no-requeue")
    number = jobs.submit("limited", *flags, program=training(epochs=2000))
    jobs.says("limited", number, "the state is saved", 90)
    assert jobs.wait("limited") == 143


def test_a_job_that_does_not_save_in_time_has_timed_out(jobs: Jobs) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    flags = ("--time", "1", "--sbatch", "--signal=B:USR1@1", "--save-timeout", "60")
    jobs.submit("deaf", *flags, program=["python", "-c", deaf])
    assert jobs.wait("deaf", seconds=170) == 1
    cause = jobs.status("deaf")["cause"]
    assert "reached its time limit" in cause["summary"]


def test_the_loss_of_a_node_queues_the_job_again(jobs: Jobs, cluster: Cluster) -> None:
    number = jobs.submit("lost", "--backend", "mpi", program=LONG)
    jobs.trains("lost", number)
    cluster.kill_node(cluster.nodes[1])
    try:
        until(lambda: bool(jobs.status("lost")["slurm"]["restarts"]), 90, str)
    finally:
        cluster.start_node(cluster.nodes[1])
    assert jobs.wait("lost", seconds=150) == 0
    assert jobs.status("lost")["run"]["attempt"] >= 1


def test_a_killed_launcher_queues_the_job_again(jobs: Jobs) -> None:
    number = jobs.submit("orphan", "--backend", "mpi", *QUICK, program=LONG)
    jobs.trains("orphan", number)
    leader = next(one for one in jobs.processes("join") if one.environ().get("SLURM_PROCID") == "0")
    leader.send_signal(signal.SIGKILL)
    jobs.says("orphan", number, "is queued again", 100)
    assert jobs.wait("orphan", seconds=150) == 0
