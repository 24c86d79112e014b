"""Shows `Call arguments:` in Keras' docstrings as a list; mkdocs.yml names this file."""

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^Call arguments:\n((?:    .*\n|\n)+)", re.MULTILINE)
_ARGUMENT = re.compile(r"^    (\w+): ", re.MULTILINE)


class CallArguments(griffe.Extension):
    """Rewrites docstrings of classes before they are parsed."""

    def on_class(self, *, cls: griffe.Class, **arguments: Any) -> None:
        if cls.docstring is not None:
            cls.docstring.value = _SECTION.sub(
                lambda found: _ARGUMENT.sub(r"    - **`\1`**: ", found[0]), cls.docstring.value
            )
