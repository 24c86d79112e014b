"""The interface of communicators, on four real ranks of every backend."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from tests.requirements import require_horovod
from tests.syncbn.communicators_program import DTYPES
from tests.syncbn.runs import JOBS

SIZE = 4

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(150)]


@pytest.fixture(scope="module", params=JOBS)
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[dict[str, Any]]]:
    """The answers of the four ranks of one backend."""
    kind, options, backend = JOBS[request.param]
    if request.param.startswith("horovod"):
        require_horovod()
    with ExitStack() as stack:
        launcher = kind(tmp_path_factory.mktemp(request.param))
        stack.callback(launcher.close)
        program = "tests.syncbn.communicators_program"
        yield launcher(SIZE, program, [backend], timeout=140, options=options).json()


def test_ranks_and_sizes(ranks: list[dict[str, Any]]) -> None:
    names = {answer["place"][0] for answer in ranks}
    assert len(names) == 1
    places = [answer["place"][1:] for answer in ranks]
    assert places == [[rank, SIZE, rank, SIZE] for rank in range(SIZE)]


def test_init_gives_the_same_communicator_again(ranks: list[dict[str, Any]]) -> None:
    assert all(answer["same"] == [True] * 5 for answer in ranks)


def test_one_process_has_one_backend(ranks: list[dict[str, Any]]) -> None:
    for answer in ranks:
        assert answer["second backend"].startswith("WorldError: this process already uses the")
        assert answer["other backend"].startswith("WorldError: ")
        assert "Use communicator='auto'" in answer["other backend"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums(ranks: list[dict[str, Any]], dtype: str) -> None:
    expected = (np.arange(1, 7).reshape(2, 3) * 10.0).tolist()
    assert all(answer["sums"][dtype] == [expected, expected] for answer in ranks)


def test_sums_are_equal_in_bits_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    assert len({answer["bits"] for answer in ranks}) == 1


def test_many_at_once(ranks: list[dict[str, Any]]) -> None:
    expected = [6.0, [[6.0, 6.0], [6.0, 6.0]], [], [6, 4], [4.0, 8.0]]
    assert all(answer["many"] == [expected, expected] for answer in ranks)


def test_broadcasts_are_bitwise_equal(ranks: list[dict[str, Any]]) -> None:
    assert all(answer["broadcasts"] == ranks[0]["broadcasts"] for answer in ranks)
    from_first, from_first_in_graph, from_last, from_last_in_graph = ranks[0]["broadcasts"]
    assert from_first == from_first_in_graph
    assert from_last == from_last_in_graph
    pattern = np.array([[np.nan, -0.0], [np.inf, 0]], "float32").tobytes().hex()
    assert from_first[0] == pattern
    assert from_last[2] == np.array([2**62 + 3], "int64").tobytes().hex()
    assert from_last[3:6] == ["0001", "03c8", np.array(3, "float16").tobytes().hex()]


def test_the_barrier_waits_for_all_ranks(ranks: list[dict[str, Any]]) -> None:
    assert min(went for _, went in (r["barrier"] for r in ranks)) >= max(
        came for came, _ in (r["barrier"] for r in ranks)
    )


def test_the_cycle_time_of_horovod(
    ranks: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    world = request.node.callspec.params["ranks"]
    for answer in ranks:
        over_gloo = "0.1" if answer["free core"] else None
        expected = {"horovod-mpi": "50", "horovod-gloo": over_gloo}
        assert answer["cycle"] == expected.get(world)


def test_subgroups(ranks: list[dict[str, Any]]) -> None:
    for rank, answer in enumerate(ranks):
        groups, first = answer["subgroups"], rank // 2 * 2
        assert groups["place"] == [rank % 2, 2]
        assert groups["sums"] == [10.0**first + 10.0 ** (first + 1)] * 2
        assert groups["from its last"] == 10.0 ** (first + 1)
        assert groups["alone"] == [0, 1, 10.0**rank]
        assert groups["whole"]
        assert groups["kept"]
        assert "WorldError: group_size must divide the 4 ranks" in groups["uneven"]
        assert "Received: group_size=3" in groups["uneven"]


def test_branches_of_one_graph(ranks: list[dict[str, Any]]) -> None:
    assert all(answer["branches"] == [SIZE * float(k) for k in range(20)] for answer in ranks)


def test_a_rank_that_built_more_layers_does_not_hang_the_others(
    ranks: list[dict[str, Any]],
) -> None:
    assert all(answer["unequal names"] == [1.5, 1.5] for answer in ranks)


@pytest.mark.parametrize("check", ["group of one", "two groups", "group of all"])
def test_statistics_of_groups(ranks: list[dict[str, Any]], check: str) -> None:
    for rank, answer in enumerate(ranks):
        for quantity, error in answer["groups"][check][0]["errors"].items():
            assert error <= 1e-12, f"rank {rank}, {quantity}: {error:.1e}"
