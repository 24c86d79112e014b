"""What a task of srun learns from its variables; tests/slurm starts such tasks."""

import json

import pytest

from syncbn.communicators.cluster_environment import cluster_environment
from syncbn.communicators.slurm import expand_counts, expand_nodes, tf_config
from syncbn.errors import WorldError

TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "1",
}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (TASK, ("tf", 2, 3)),
        ({**TASK, "PMIX_RANK": "2"}, ("mpi", 2, 3)),
        ({**TASK, "SLURM_STEP_NUM_TASKS": "1"}, ("local", 0, 1)),
        # A batch script: the number of tasks that it may start.
        ({"SLURM_NTASKS": "3", "SLURM_PROCID": "0"}, ("local", 0, 1)),
        ({**TASK, "HOROVOD_SIZE": "4", "HOROVOD_RANK": "1"}, ("horovod", 1, 4)),
        ({**TASK, "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, ("mpi", 3, 4)),
    ],
    ids=str,
)
def test_rank_and_size(variables: dict[str, str], expected: tuple[str, int, int]) -> None:
    around = cluster_environment(variables)
    assert (around.backend, around.rank, around.size) == expected


def test_numbers_that_are_none() -> None:
    with pytest.raises(WorldError, match="must be whole numbers"):
        cluster_environment({**TASK, "SLURM_PROCID": "two"})


def test_the_workers_of_a_cluster_are_the_tasks_node_by_node() -> None:
    config = json.loads(tf_config(TASK))
    assert config["task"] == {"type": "worker", "index": 2}
    hosts, ports = zip(*(one.split(":") for one in config["cluster"]["worker"]), strict=True)
    assert hosts == ("n1", "n1", "n2")
    assert int(ports[1]) == int(ports[0]) + 1
    assert ports[2] == ports[0]
    assert 20000 <= int(ports[0]) < 32000


def test_tasks_that_are_not_numbered_node_by_node() -> None:
    with pytest.raises(WorldError, match="srun --distribution=block"):
        tf_config({**TASK, "SLURM_PROCID": "1"})


def test_nodes_that_do_not_match_the_tasks() -> None:
    with pytest.raises(WorldError, match="expected 3 tasks on the nodes of this step"):
        tf_config({**TASK, "SLURM_STEP_TASKS_PER_NODE": "2"})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("gpu", ["gpu"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-10,12],login", ["n08", "n09", "n10", "n12", "login"]),
        ("r[1-2]n[1,3]", ["r1n1", "r1n3", "r2n1", "r2n3"]),
        ("a,b[7].site", ["a", "b7.site"]),
    ],
)
def test_lists_of_nodes(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


def test_counts_of_tasks() -> None:
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]
