"""One library of kernels, built once, on every TensorFlow that is promised: the oracle matrix on
one process and on two MPI ranks.

Each TensorFlow has a virtual environment of its own outside the checkout, made when missing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.machines import tensorflow_environments
from tests.processes import REPOSITORY, Launcher, Mpirun, SingleProcess
from tests.syncbn import matrix
from tests.syncbn.test_matrix import check_case

pytestmark = [pytest.mark.machines, pytest.mark.timeout(3000)]

_SECONDS = 1200


@pytest.fixture(scope="module", params=tensorflow_environments.VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    tensorflow_environments.skip_without_wheels(chosen)
    return chosen


@pytest.fixture
def ranks(size: int, version: str, tmp_path: Path) -> Iterator[Launcher]:
    start = SingleProcess if size == 1 else Mpirun
    launcher = start(tmp_path / "ranks", tensorflow_environments.scripts(version))
    yield launcher
    launcher.close()


@pytest.mark.parametrize(("size", "backend"), [(1, "local"), (2, "mpi")])
def test_the_kernels_are_right(
    size: int, backend: str, version: str, library: Path, ranks: Launcher
) -> None:
    environment = {
        "XDG_CACHE_HOME": str(library.parents[1]),
        "CXX": "/nowhere/c++",
        "PYTHONPATH": str(REPOSITORY),
    }
    job = ranks.start(size, "tests.machines.versions_program", [backend], environment=environment)
    answers: list[dict[str, Any]] = job.wait(_SECONDS).check().json()
    assert len(answers) == size
    operations = ["SyncbnLocalSums", "SyncbnMpiAllReduce", "SyncbnNormalize"]
    if size == 1:
        operations.remove("SyncbnMpiAllReduce")
    for answer in answers:
        status = answer["status"]
        assert answer["tensorflow"] == version
        assert (status["path"], status["library"]) == ("native", str(library)), status["reason"]
        assert answer["operations"] == operations
    for case in matrix.case_names(tuple(matrix.POLICIES)):
        check_case(case, [report for answer in answers for report in answer["matrix"][case]])
