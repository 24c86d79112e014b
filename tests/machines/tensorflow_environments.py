"""Virtual environments with other TensorFlows, kept outside the checkout and made when missing."""

import fcntl
import hashlib
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.machines import roots
from tests.processes import REPOSITORY

# TensorFlow → the newest Python it has wheels for.
VERSIONS = {"2.16.2": (3, 12), "2.18.1": (3, 12), "2.20.0": (3, 13), "2.21.0": (3, 13)}
_SECONDS = 1200


def skip_without_wheels(version: str) -> None:
    """Skips a test whose TensorFlow has no wheels for this Python."""
    if sys.version_info[:2] > VERSIONS[version]:
        pytest.skip(f"TensorFlow {version} has no wheels for Python {platform.python_version()}")


def scripts(version: str) -> Path:
    """The directory of the programs of an environment with this TensorFlow, MPI, and all that
    `launcher install-horovod` needs.
    """
    packages = [f"tensorflow-cpu=={version}", *_requirements()]
    digest = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:8]
    tag = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    directory = roots.cache() / f"tensorflow-{version}-{tag}-{digest}"
    done = directory / "complete"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{directory}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(directory)],
                [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages],
            ):
                subprocess.run(command, timeout=_SECONDS, check=True)
            done.touch()
    return directory / "bin"


def _requirements() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    every = [*project["dependencies"], *extras["mpi"], *extras["horovod"]]
    return [one for one in every if not one.startswith(f"{project['name']}[")]
