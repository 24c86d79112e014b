"""`launcher report`: an HTML report on one run, or on two side by side."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.target_flags import Output
from launcher.runs.reader import find_run

Runs = Annotated[
    list[str], typer.Argument(help="A run's directory, id, start of an id, or job name; or two.")
]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="The page.", show_default="report.html in the run"),
]


def command(run: Runs, file: File = None, output: Output = Path("runs")) -> None:
    """Write an HTML page with figures and findings that needs no network.

    With two runs, it shows their numbers and curves side by side.
    """
    from launcher.errors import UsageError
    from launcher.report.write import write_report

    if len(run) > 2:
        raise UsageError(f"expected one run or two. Received: {len(run)}")
    found = [Path(name) if Path(name).is_dir() else find_run(output, name) for name in run]
    print(write_report(found, file))
