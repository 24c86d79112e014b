"""docs/metrics.md matches the definitions."""

from pathlib import Path

from launcher.metrics.document import document

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == document(), "run: python -m launcher.metrics.document"
