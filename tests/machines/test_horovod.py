"""Horovod, built by other compilers and for other TensorFlows than ours, averages on two ranks.

GCC 12, 14 and 15 are the compilers of the Debians in test_commands.py.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.machines import tensorflow_environments
from tests.machines.machine import CHECKOUT, Machine
from tests.processes import REPOSITORY, Horovodrun, Launcher
from tests.syncbn import matrix
from tests.syncbn.test_matrix import check_case

pytestmark = [pytest.mark.machines, pytest.mark.timeout(3000)]

# Debian 13's package of a compiler → its C++ compiler.
_COMPILERS = {"g++-13": "g++-13", "clang-19": "clang++-19"}
_SECONDS = 1500


@pytest.mark.parametrize("package", _COMPILERS)
def test_a_compiler_other_than_the_default(package: str, debian_13: Machine) -> None:
    machine = debian_13
    machine.checkout()
    machine.install(package, "g++" if "clang" in package else "make")  # clang uses GCC's library
    compiler = {"CXX": _COMPILERS[package]}
    made = machine.run(
        "make train ARGS='--output runs/first'", seconds=_SECONDS, environment=compiler
    ).check()
    assert ".venv/bin/horovodrun " in made.output
    summary = json.loads(Path(machine.path(CHECKOUT), "runs/first/summary.json").read_text())
    assert summary["accuracy"] > 0.97
    assert summary["kernels"]["path"] == "native", summary["kernels"]
    built = machine.run(
        ".venv/bin/python -m launcher install-horovod", seconds=120, environment=compiler
    ).check()
    assert "is installed and works" in built.output
    _compiled_by(machine, package)


def _compiled_by(machine: Machine, package: str) -> None:
    """The compiler leaves its name in the library: the one that was asked for has made it."""
    [library] = machine.path(CHECKOUT).glob(
        ".venv/lib/python3*/site-packages/horovod/tensorflow/mpi_lib*.so"
    )
    name = b"clang version 19" if "clang" in package else b"GCC: (Debian 13"
    assert name in library.read_bytes()


@pytest.fixture(params=[one for one in tensorflow_environments.VERSIONS if one != "2.21.0"])
def older(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    tensorflow_environments.skip_without_wheels(chosen)
    return chosen


@pytest.fixture
def ranks(older: str, tmp_path: Path) -> Iterator[Launcher]:
    launcher = Horovodrun(tmp_path / "ranks", tensorflow_environments.scripts(older))
    yield launcher
    launcher.close()


def test_older_tensorflow(older: str, library: Path, ranks: Launcher) -> None:
    here = {"PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
    python = tensorflow_environments.scripts(older) / "python"
    subprocess.run(
        [str(python), "-m", "launcher", "install-horovod"],
        env=os.environ | here,
        timeout=_SECONDS,
        check=True,
    )
    here["XDG_CACHE_HOME"] = str(library.parents[1])  # else each environment builds the kernels
    for options in (["--gloo"], ["--mpi"]):
        job = ranks.start(
            2, "tests.machines.versions_program", ["horovod"], environment=here, options=options
        )
        answers: list[dict[str, Any]] = job.wait(_SECONDS).check().json()
        assert [answer["tensorflow"] for answer in answers] == [older, older]
        for case in matrix.case_names(tuple(matrix.POLICIES)):
            check_case(case, [report for one in answers for report in one["matrix"][case]])
