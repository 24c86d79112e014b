"""`launcher report`: a run on one HTML page, or two side by side."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.target_flags import Output
from launcher.runs.reader import find_run

Runs = Annotated[
    list[str], typer.Argument(help="A run's directory, its name, or a beginning of it; or two.")
]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="The page.", show_default="report.html in the run"),
]


def command(run: Runs, file: File = None, output: Output = Path("runs")) -> None:
    """Write a page with figures and plain conclusions that needs no network.

    With two runs, their numbers and curves stand side by side.
    """
    from launcher.errors import UsageError
    from launcher.report.write import write_report

    if len(run) > 2:
        raise UsageError(f"expected one run or two. Received: {len(run)}")
    found = [Path(name) if Path(name).is_dir() else find_run(output, name) for name in run]
    print(write_report(found, file))
