"""`launcher run`: runs and supervises a job in the foreground."""

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
        bool, typer.Option("--quiet", "-q", help="Print failures and the result only.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines.")] = False,
) -> None:
    """Start a job, monitor it, restart it after failures, and explain how it ended.

    The program needs no change: launcher run -np 4 -- python my_train.py

    After the first Ctrl-C or SIGTERM the ranks save and stop; the second kills them.
    """
    if quiet and as_json:
        raise UsageError("expected --quiet or --json. Received: both")
    stop = StopRequests()
    with stop.listening():
        raise typer.Exit(target_for(spec).run(spec, stop, lambda: view_of(spec, quiet, as_json)))


def view_of(spec: JobSpec, quiet: bool = False, as_json: bool = False) -> View:
    """Shows events as JSON, as lines, or above a live table on a terminal."""
    if as_json:
        return JsonLines()
    if quiet or not sys.stdout.isatty():
        return Lines(spec, quiet)
    return LiveTable(spec)


command = with_job_flags(run)
