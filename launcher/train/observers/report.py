"""At the end of a run: its report."""

import os
from pathlib import Path
from typing import Any

from launcher.train.observers.base import Observer


class Report(Observer):
    """Writes OUTPUT/report.html, unless the run was stopped and has no time to lose.

    A launcher whose run this is writes it itself, with the restarts that only it has seen.
    """

    what = "report.html"

    def __init__(self, output: Path) -> None:
        self._output = output

    def on_end(self, summary: dict[str, Any]) -> None:
        run = os.environ.get("LAUNCHER_RUN_DIR")
        launchers_own = run is not None and Path(run).resolve() == self._output.resolve()
        if not (summary["stopped"] or launchers_own):
            from launcher.report.write import write_report

            write_report([self._output])
