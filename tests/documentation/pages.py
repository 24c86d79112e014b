"""The pages people read, and the blocks of code on them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.processes import REPOSITORY

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*) *(?:title=\"(?P<title>[^\"]+)\")?\s*$")
_DOCS = REPOSITORY / "docs"

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "SECURITY.md",
    *sorted(_DOCS.glob("*.md")),
]


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: The file it stands in.
        line: Where its text begins, from 1.
        language: What follows the fence; empty where nothing does.
        title: The name of the file it is, for a program that the page runs.
        text: What is between the fences, without their indentation.
    """

    page: Path
    line: int
    language: str
    title: str | None
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order. Raises ValueError for a fence that never ends."""
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            if line.lstrip().startswith("```"):
                raise ValueError(f"{page}:{number}: not a fence that the tests understand: {line}")
            continue
        text = []
        for _, inner in lines:
            if inner.strip() == "```":
                break
            text.append(inner.removeprefix(fence["indent"]))
        else:
            raise ValueError(f"{page}:{number}: the block never ends")
        yield Block(page, number + 1, fence["language"], fence["title"], "\n".join(text) + "\n")


def commands(block: Block) -> list[str]:
    """The commands of a console block: continued lines joined, comments left out."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    lines = (re.sub(r"(^|\s)#\s.*", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]
