"""What a machine may lack, such as Horovod or a compiler: a test that needs it asks here."""

import subprocess
from functools import cache
from importlib.util import find_spec
from shutil import which

import pytest


def require_horovod() -> None:
    """Skips the test where Horovod is not installed, with the reason that the doctor gives."""
    if (missing := _lacks_horovod()) is not None:
        pytest.skip(missing)


def require_program_of_a_compiler() -> None:
    """Skips the test where there is no `c++`, which a build of Horovod misses before all else."""
    if which("c++") is None:
        pytest.skip("no c++: apt-get install g++")


def require_compiler() -> list[str]:
    """The command of the C++ compiler; skips the test where there is none that works."""
    from syncbn.native.compiler import find_compiler

    command = find_compiler()
    if command is None:
        pytest.skip("no C++ compiler: apt-get install g++")
    done = subprocess.run(
        [*command, "-x", "c++", "-fsyntax-only", "-"],
        input="#include <new>\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"{command[0]} does not compile: {done.stderr.strip()}")
    return command


@cache
def _lacks_horovod() -> str | None:
    if find_spec("horovod") is not None:
        return None
    from launcher.horovod_build.failure import why_missing

    return f"Horovod is not installed: {why_missing()}; python -m launcher install-horovod"
