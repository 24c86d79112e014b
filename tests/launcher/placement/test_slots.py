"""Who sits where, with which cores, threads and GPUs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.placement.slots import assign_slots, compute_environment, cores_of_ranks, numa_nodes
from launcher.spec import Host, JobSpec, build_spec


def job(**fields: Any) -> JobSpec:
    return build_spec({"command": ["a"], **fields})


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_slots_are_those_that_horovod_expects(slots: list[int], data: st.DataObject) -> None:
    hosts = [Host(name=f"h{index}", slots=count) for index, count in enumerate(slots)]
    ranks = data.draw(st.integers(1, sum(slots)))
    assigned = assign_slots(ranks, hosts)
    assert [one.rank for one in assigned] == list(range(ranks))
    for one in assigned:
        same_host = [other for other in assigned if other.hostname == one.hostname]
        across = [other for other in assigned if other.local_rank == one.local_rank]
        assert one.size == ranks
        assert one.local_size == len(same_host) <= slots[int(one.hostname[1:])]
        assert one.local_rank == same_host.index(one)
        assert (one.cross_rank, one.cross_size) == (across.index(one), len(across))


def test_threads_divide_the_cores_and_user_settings_win() -> None:
    environment = compute_environment(job(), 4, 0, {"OMP_NUM_THREADS": "7"})
    assert environment["TF_NUM_INTRAOP_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in environment, "inherited as it is"
    set_here = compute_environment(job(environment={"OMP_NUM_THREADS": "9"}), 4, 0, {})
    assert set_here["OMP_NUM_THREADS"] == "9"
    asked = compute_environment(job(resources={"threads": 3}), 3, 0, {"OMP_NUM_THREADS": "7"})
    assert asked["OMP_NUM_THREADS"] == "3"


def test_gpus_by_local_rank() -> None:
    two_each = job(resources={"gpus": 2})
    assert compute_environment(two_each, 1, 1, {})["CUDA_VISIBLE_DEVICES"] == "2,3"
    outer = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    assert compute_environment(two_each, 1, 1, outer)["CUDA_VISIBLE_DEVICES"] == "6,7"
    none = job(resources={"gpus": 0})
    assert compute_environment(none, 1, 0, outer)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in compute_environment(job(backend="horovod"), 1, 0, outer)
    assert compute_environment(job(backend="tf"), 1, 1, outer)["CUDA_VISIBLE_DEVICES"] == "5"


TWO_NODES = [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("resources", "ranks", "nodes", "cores"),
    [
        ({}, 2, [[0, 1]], []),
        ({}, 2, TWO_NODES, TWO_NODES),
        ({}, 4, TWO_NODES, [TWO_NODES[0]] * 2 + [TWO_NODES[1]] * 2),
        ({"binding": "none"}, 2, TWO_NODES, []),
        ({"binding": "cores"}, 4, TWO_NODES, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ({"cpus": 1}, 2, TWO_NODES, [[0], [1]]),
        ({"binding": "cores"}, 3, [[0, 1]], []),
        ({"cpus": 4}, 3, TWO_NODES, []),
    ],
)
def test_binding(
    resources: dict[str, Any], ranks: int, nodes: list[list[int]], cores: list[list[int]]
) -> None:
    assert cores_of_ranks(job(resources=resources), ranks, nodes) == cores


def test_this_machine_has_cores() -> None:
    assert numa_nodes()[0]
