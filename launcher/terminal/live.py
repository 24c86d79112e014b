"""The view for a terminal: the lines of plain mode scroll above a live table."""

import sys
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from launcher.runs.events import Event
from launcher.runs.reader import RunState
from launcher.spec import JobSpec
from launcher.terminal.lines import Lines
from launcher.terminal.table import render


class LiveTable(Lines):
    """Lines above a live table of the ranks."""

    def __init__(self, spec: JobSpec) -> None:
        super().__init__(spec)
        self._run = RunState()
        self._console = Console()
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._table)
        self._live.start()

    def __call__(self, event: Event) -> None:
        self._run.apply(event.as_json())
        if event.kind == "done":
            self._live.stop()  # the table remains above the last lines
        super().__call__(event)

    def close(self) -> None:
        super().close()
        self._live.stop()

    def print(self, line: str, stream: TextIO) -> None:
        bold = "bold" if stream is sys.stderr and line.startswith("launcher:") else ""
        self._console.print(Text(line, style=bold), soft_wrap=True)

    def _table(self) -> RenderableType:
        return render(self._run, self._spec.restart.max_restarts, self._spec.metrics)
