"""What all tests share: a quiet, small TensorFlow, launchers of real ranks, and a loud list of what
did not run."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Before anything imports TensorFlow, which reads these once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.docker import engine
from tests.processes import (
    REPOSITORY,
    Horovodrun,
    Launcher,
    Mpirun,
    SingleProcess,
    TensorFlowCluster,
    find_executable,
    python_path,
)
from tests.requirements import require_horovod
from tests.slurm import cluster

# For every Python that a test starts, and for the workers that run the tests side by side.
os.environ["PYTHONPATH"] = python_path(REPOSITORY / "tests" / "start_up", REPOSITORY)


def _lacks_mpirun() -> str | None:
    return None if find_executable("mpirun") else "no mpirun: pip install 'syncbn[mpi]'"


def _lacks_prometheus() -> str | None:
    return None if shutil.which("prometheus") else "no prometheus: apt-get install prometheus"


def _lacks_browser() -> str | None:
    return None if shutil.which("chromium") else "no chromium: apt-get install chromium"


# What a marked test needs of the machine: each probe says what is missing.
_PROBES: dict[str, Callable[[], str | None]] = {
    "multiprocess": cache(_lacks_mpirun),
    "docker": engine.lacks,
    "slurm": cluster.lacks,
    "prometheus": cache(_lacks_prometheus),
    "browser": cache(_lacks_browser),
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.side_by_side import ByGroup

    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long jobs first, so that workers that run side by side end together."""
    items.sort(key=lambda item: _longest({marker.name for marker in item.iter_markers()}))


def _longest(markers: set[str]) -> int:
    return 0 if "docker" in markers else 1 if markers & {*_PROBES} else 2


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers():
        probe = _PROBES.get(marker.name)
        if probe is not None and (missing := probe()) is not None:
            pytest.skip(missing)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.write_sep(
        "!", f"{len(skipped)} TESTS DID NOT RUN on this machine", red=True, bold=True
    )
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.write_line(
            f"  {report.nodeid}: {reason.removeprefix('Skipped: ')}", red=True
        )


def _launcher(kind: type[Launcher], directory: Path) -> Iterator[Launcher]:
    launcher = kind(directory)
    try:
        yield launcher
    finally:
        launcher.close()


@pytest.fixture
def mpirun(tmp_path: Path) -> Iterator[Launcher]:
    """`mpirun(size, program, arguments, environment=, timeout=, options=)` runs real MPI ranks."""
    yield from _launcher(Mpirun, tmp_path / "mpirun")


@pytest.fixture
def horovodrun(tmp_path: Path) -> Iterator[Launcher]:
    """The same under horovodrun: over MPI, or over Gloo with `options=["--gloo"]`."""
    require_horovod()
    yield from _launcher(Horovodrun, tmp_path / "horovodrun")


@pytest.fixture
def tf_cluster(tmp_path: Path) -> Iterator[Launcher]:
    """The same as a TF_CONFIG cluster on loopback ports."""
    yield from _launcher(TensorFlowCluster, tmp_path / "tf-cluster")


@pytest.fixture
def single_process(tmp_path: Path) -> Iterator[Launcher]:
    """The same as one plain process with no launcher: the size is 1."""
    yield from _launcher(SingleProcess, tmp_path / "single-process")


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the source text of a rank's program to a file and returns its path."""

    def write(source: str) -> Path:
        path = tmp_path / f"program-{len(list(tmp_path.glob('program-*')))}.py"
        path.write_text(source)
        return path

    return write
