"""Tests that share something stay in one worker, and those that wait do so beside others."""

import re
import subprocess
import sys
from pathlib import Path

from tests.processes import REPOSITORY
from tests.side_by_side import group


def test_groups() -> None:
    matrix = "tests/syncbn/test_matrix.py::test_matrix"
    collectives = "tests/syncbn/test_matrix_collectives.py::test_one_collective_each_way"
    assert group("tests/launcher/test_spec.py::test_x[a::b]") == "tests/launcher/test_spec.py"
    assert group("tests/docker/test_mpi.py::test_x") == "docker"
    commands = "tests/machines/test_commands.py"
    assert group(f"{commands}::test_train[sid-with]") == group(f"{commands}::test_x[sid-with]")
    assert group(f"{commands}::test_train[sid-with]") != group(f"{commands}::test_x[sid-broken]")
    assert group(f"{matrix}[mpi-2-uneven-graph-float32-0]") == group(f"{collectives}[mpi-2]")
    assert group(f"{matrix}[multiworker-strategy-3-rank 2]") == "multiworker-3"
    assert group(f"{matrix}[multiworker-strategy-alone-2-mask-x]") == "multiworker-2"
    two_ranks = "tests/syncbn/test_matrix_two_ranks.py::test_a_fit_with_all_callbacks_is_one_fit"
    assert group(f"{two_ranks}[mpi-2]") == group(f"{collectives}[mpi-2]")
    assert group(f"{matrix}[horovod-mpi-2-mask-eager-float64-0]") == "horovod-mpi-2"
    assert group("tests/syncbn/test_matrix.py::test_every_world") == "tests/syncbn/test_matrix.py"


def test_one_worker_begins_with_what_waits(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests.side_by_side import ByGroup\n"
        "def pytest_xdist_make_scheduler(config, log):\n"
        "    return ByGroup(config, log)\n"
    )
    for name in ("syncbn/test_a", "syncbn/test_b", "launcher/test_c", "launcher/test_d"):
        file = tmp_path / "tests" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        # More than two, for a worker is given more work while it has two tests to go.
        file.write_text(
            "import pytest, time\n"
            "@pytest.mark.parametrize('n', range(4))\n"
            "def test(n): time.sleep(0.1)\n"
        )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-v", "--rootdir", str(tmp_path), "tests"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    ran = {*re.findall(r"^\[(gw\d)\] .* PASSED tests/(\w+)/", done.stdout, re.MULTILINE)}
    # Which of them is the first to be ready is chance.
    assert len(ran) == len({worker for worker, _ in ran}) == 2, done.stdout
