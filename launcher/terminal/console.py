"""The console for tables: as wide as the terminal, without a limit for a pipe or a file."""

import sys

from rich.console import Console

_WHOLE_LINES = 10_000


def console() -> Console:
    """The console of standard output; lines to a pipe or a file are neither cut nor wrapped."""
    return Console(width=None if sys.stdout.isatty() else _WHOLE_LINES)
