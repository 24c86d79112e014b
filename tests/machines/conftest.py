"""A fresh machine for one test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

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
