"""Where tables are printed: as wide as the terminal, or whole into a pipe or a file."""

import sys

from rich.console import Console

_WHOLE_LINES = 10_000


def console() -> Console:
    """The console of standard output; nobody cuts or wraps lines on their way to `grep`."""
    return Console(width=None if sys.stdout.isatty() else _WHOLE_LINES)
