"""A job of several members that leaves nothing behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.rendezvous.members import Group


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    group = Group(tmp_path)
    yield group
    for member in group.members:
        member.kill()
