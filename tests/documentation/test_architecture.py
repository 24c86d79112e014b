"""Every file that the page on the architecture names is there."""

import re

from tests.processes import REPOSITORY

_PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]+)`")


def test_every_file_of_the_architecture_exists() -> None:
    named = _PATH.findall((REPOSITORY / "docs" / "architecture.md").read_text())
    assert len(named) > 20
    assert [path for path in named if not (REPOSITORY / path).exists()] == []
