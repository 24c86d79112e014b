"""A job of several members that leaves nothing behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.gang.members import Gang


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[Gang]:
    gang = Gang(tmp_path)
    yield gang
    for member in gang.members:
        member.kill()
