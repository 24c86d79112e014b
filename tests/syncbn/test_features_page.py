"""docs/features.md names a test for each of our cells; every one of them is there."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "features.md"
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in ("Feature", "---")]


def test_every_cell_of_ours_names_a_test_that_exists() -> None:
    assert len(rows()) > 25
    for feature, ours, *_ in rows():
        named = NAMED.findall(ours)
        assert named, f"no test named for: {feature}"
        for file, function in named:
            assert f"\ndef {function}(" in (HERE / file).read_text(), f"{file}::{function}"


def test_every_note_is_there_and_used() -> None:
    text = PAGE.read_text()
    notes = re.findall(r"^\[\^([\w-]+)\]:", text, flags=re.MULTILINE)
    used = set(re.findall(r"\[\^([\w-]+)\](?!:)", text))
    assert len(notes) == len(set(notes))
    assert set(notes) == used
