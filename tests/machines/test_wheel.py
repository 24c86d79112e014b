"""What `make wheel` makes, installed on an empty Debian 13 without a compiler, and trained with."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.machines.machine import Machine
from tests.processes import REPOSITORY

pytestmark = pytest.mark.machines

_PLACE = "/srv/wheel"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel for x86-64."""
    place = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, REPOSITORY / ".ci" / "wheel.py", "--output", place],
        timeout=900,
        check=True,
    )
    [made] = place.glob("*.whl")
    return made


@pytest.mark.timeout(1000)
def test_wheel_holds_one_library_for_every_python(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-manylinux_2_28_x86_64.whl")
    libraries = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    assert len(libraries) == 1
    assert libraries[0].startswith("syncbn/native/lib/syncbn-x86_64-")


@pytest.mark.timeout(1500)
def test_installed_without_a_compiler_it_trains_at_full_speed(
    wheel: Path, debian_13: Machine
) -> None:
    place = debian_13.path(_PLACE)
    place.mkdir(parents=True)
    for file in (wheel, REPOSITORY / "constraints.txt"):
        shutil.copy(file, place)
    debian_13.run("python3 -m venv .venv", seconds=60, directory=_PLACE).check()
    install = f".venv/bin/pip install --quiet -c constraints.txt '{wheel.name}[cpu,mpi]'"
    debian_13.run(install, seconds=900, directory=_PLACE).check()
    debian_13.run(
        ". .venv/bin/activate && mpirun -np 2 python -m launcher.train --output run",
        seconds=300,
        directory=_PLACE,
        environment={
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_plm": "isolated",
            "OMPI_MCA_rmaps_base_oversubscribe": "1",
        },
    ).check()
    summary = json.loads((place / "run" / "summary.json").read_text())
    assert summary["accuracy"] > 0.97
    assert (summary["world_size"], summary["backend"]) == (2, "mpi")
    assert summary["kernels"]["path"] == "native", summary["kernels"]
    assert "site-packages" in summary["kernels"]["library"]
