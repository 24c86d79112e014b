"""Runs the Python blocks of pages, each page in its own names and its own folder, one process.

python -m tests.documentation.run_python FOLDER PAGE...

A block `title="FILE"` is a program: it is left to the commands of the page. A line
`print(...)  # TEXT` promises to print TEXT, or what TEXT begins with up to a colon. Prints one JSON
object: the page to None, or to the traceback of what failed.
"""

import contextlib
import io
import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import keras

from syncbn import legacy
from tests.documentation.pages import blocks

_PROMISE = re.compile(r"^print\(.*\)  # (.*)$", re.MULTILINE)


def run(page: Path) -> None:
    """Runs the blocks of a page in order, in the current folder."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    legacy.default_store().clear()
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language != "python" or block.title:
            continue
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(code, names)
        promised = _PROMISE.findall(block.text)
        printed = said.getvalue().splitlines()
        kept = len(promised) == len(printed) and all(map(_keeps, promised, printed))
        if promised and not kept:
            raise AssertionError(f"{block.place}: promised {promised}, printed {printed}")


def _keeps(promised: str, printed: str) -> bool:
    return promised == printed or promised.startswith(f"{printed}:")


def main(folder: Path, *pages: str) -> None:
    results: dict[str, str | None] = {}
    for page in pages:
        place = folder / Path(page).stem
        place.mkdir()
        os.chdir(place)
        try:
            run(Path(page))
            results[page] = None
        except Exception:
            results[page] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
