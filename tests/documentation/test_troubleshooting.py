"""docs/troubleshooting.md quotes what the packages really say."""

import ast
import re

from tests.processes import REPOSITORY

PAGE = REPOSITORY / "docs" / "troubleshooting.md"


def _said() -> list[str]:
    """Every constant string of both packages, as the compiler joins them, and what set-up says."""
    return [
        (REPOSITORY / ".ci" / "find-python").read_text(),
        *_strings(),
    ]


def _strings() -> list[str]:
    return [
        node.value
        for package in ("syncbn", "launcher")
        for path in (REPOSITORY / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_headings_in_code_are_messages_of_ours() -> None:
    quoted = re.findall(r"^### `([^`]+)`$", PAGE.read_text(), re.MULTILINE)
    assert len(quoted) > 8
    said = _said()
    assert [text for text in quoted if not any(text in constant for constant in said)] == []
