"""One collective forward, one backward, none in inference: counts and bytes in graphs."""

import pytest

from tests.syncbn.counting import CHANNELS
from tests.syncbn.runs import LOCAL, WORLDS, Runs

# float64: two parts of the count and four sums per channel; then two sums per channel.
FORWARD, BACKWARD = 8 * (2 + 4 * CHANNELS), 8 * 2 * CHANNELS

# The worlds whose statistics an operation of the C++ library reduces, in the order of the program.
BY_OUR_OPERATION = {
    "mpi": "SyncbnMpiAllReduce",
    "horovod-mpi": "SyncbnMpiAllReduce",
    "horovod-gloo": "SyncbnDirectAllReduce",
}


@pytest.mark.parametrize(("world", "size"), WORLDS)
def test_one_collective_each_way(world: str, size: int, runs: Runs) -> None:
    for found in runs.reports(world, size)["counts"]["training"]:
        if world in LOCAL:
            assert found == []
        elif (world, size) == ("mirrored", 3):
            assert found == []  # Three replicas sum with AddN, which is not a collective.
        elif world in BY_OUR_OPERATION:
            assert {kind for kind, _ in found} == {BY_OUR_OPERATION[world]}
            assert [size for _, size in found] == [FORWARD, BACKWARD]
        else:
            replicas = size if world == "mirrored" else 1
            assert sorted(size for _, size in found) == sorted([FORWARD, BACKWARD] * replicas)


@pytest.mark.parametrize(("world", "size"), WORLDS)
def test_no_collective_without_training(world: str, size: int, runs: Runs) -> None:
    counts = runs.reports(world, size)["counts"]
    assert all(found == [] for found in counts["inference"] + counts["frozen"])
