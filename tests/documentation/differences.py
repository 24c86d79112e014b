"""What a reader changes: the lines in which `NAME_before.py` and `NAME_after.py` differ."""

import ast
import difflib
from pathlib import Path

from tests.processes import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


def differences(name: str) -> list[str]:
    """The lines of the moved script with `+`, those they replace with `-`; docstrings aside."""
    before, after = (_body(EXAMPLES / f"{name}_{when}.py") for when in ("before", "after"))
    changed = [line[0] + line[1:].rstrip() for line in difflib.ndiff(before, after)]
    return [line for line in changed if line[0] in "+-" and line[2:].strip()]


def _body(path: Path) -> list[str]:
    text = path.read_text()
    start = ast.parse(text).body[0].end_lineno
    return text.splitlines()[start:]
