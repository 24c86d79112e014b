"""Reads JSON as strangers do: by the standard, which has no NaN."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn


def strict(path: Path) -> Iterator[Any]:
    """What the file holds, a line or the whole, by a reader that knows standard JSON only."""

    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"{path} holds {word}, which is not JSON")

    text = path.read_text()
    for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
        yield json.loads(part, parse_constant=refuse)
