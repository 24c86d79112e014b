"""`launcher run`: runs a job to its end, watched, in the foreground."""

import sys
from typing import Annotated

import typer

from launcher.cli.job_flags import with_job_flags
from launcher.errors import UsageError
from launcher.spec import JobSpec
from launcher.supervision.run import View
from launcher.supervision.stop import StopRequests
from launcher.targets import target_for
from launcher.terminal.json_lines import JsonLines
from launcher.terminal.lines import Lines
from launcher.terminal.live import LiveTable


def run(
    spec: JobSpec,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Failures and the end only.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines.")] = False,
) -> None:
    """Start a job, watch it, restart it when that is worth it, and explain how it ended.

    The program needs no change: launcher run -np 4 -- python my_train.py

    Ctrl-C or SIGTERM once lets the ranks save and stop, twice ends them at once.
    """
    if quiet and as_json:
        raise UsageError("expected --quiet or --json. Received: both")
    stop = StopRequests()
    with stop.listening():
        raise typer.Exit(target_for(spec).run(spec, stop, lambda: view_of(spec, quiet, as_json)))


def view_of(spec: JobSpec, quiet: bool = False, as_json: bool = False) -> View:
    """Shows events as JSON, as lines, or above a table where a person looks on."""
    if as_json:
        return JsonLines()
    if quiet or not sys.stdout.isatty():
        return Lines(spec, quiet)
    return LiveTable(spec)


command = with_job_flags(run)
