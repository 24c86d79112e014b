"""Tests that share something stay in one worker."""

from tests.side_by_side import group


def test_groups() -> None:
    matrix = "tests/syncbn/test_matrix.py::test_matrix"
    collectives = "tests/syncbn/test_matrix_collectives.py::test_one_collective_each_way"
    assert group("tests/launcher/test_spec.py::test_x[a::b]") == "tests/launcher/test_spec.py"
    assert group("tests/docker/test_mpi.py::test_x") == "docker"
    assert group(f"{matrix}[mpi-2-uneven-graph-float32-0]") == group(f"{collectives}[mpi-2]")
    assert group(f"{matrix}[multiworker-strategy-3-rank 2]") == "multiworker-3"
    assert group(f"{matrix}[multiworker-strategy-alone-2-mask-x]") == "multiworker-2"
    two_ranks = "tests/syncbn/test_matrix_two_ranks.py::test_a_fit_with_all_callbacks_is_one_fit"
    assert group(f"{two_ranks}[mpi-2]") == group(f"{collectives}[mpi-2]")
    assert group(f"{matrix}[horovod-mpi-2-mask-eager-float64-0]") == "horovod-mpi-2"
    assert group("tests/syncbn/test_matrix.py::test_every_world") == "tests/syncbn/test_matrix.py"
