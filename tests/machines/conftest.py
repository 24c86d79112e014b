"""A fresh machine for one test, and one library of kernels for every TensorFlow."""

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncbn.native import compiler
from tests.machines import roots
from tests.machines.machine import Machine


@pytest.fixture
def debian_13(tmp_path: Path) -> Iterator[Machine]:
    """Debian 13, without a compiler and without a checkout."""
    if (missing := roots.lacks()) is not None:
        pytest.skip(missing)
    machine = Machine("trixie", tmp_path / "root")
    try:
        yield machine
    finally:
        machine.close()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, alone in a cache of its own; no TensorFlow has a part in its making."""
    if compiler.find_compiler() is None:
        pytest.skip("no C++ compiler: apt-get install g++")
    machine = platform.machine()
    target = tmp_path_factory.mktemp("cache") / "syncbn" / compiler.file_name(machine)
    compiler.build(target, machine)
    return target
