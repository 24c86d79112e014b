"""`launcher run`: runs a job to its end, watched, in the foreground."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.job_flags import supervised, target_of, with_job_flags
from launcher.errors import LauncherError, UsageError
from launcher.metrics.serving import job_metrics
from launcher.runs.layout import TRAINING_EVENTS
from launcher.runs.writer import RunWriter
from launcher.spec import JobSpec
from launcher.supervision.stop import StopRequests
from launcher.supervision.supervisor import Launchable, Result, Supervisor
from launcher.targets.compose import ComposeTarget
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
        target = target_of(spec)
        if isinstance(target, ComposeTarget):
            target.check()
            raise typer.Exit(target.run(stop))
        result = supervise(supervised(target), stop, quiet, as_json)
    raise typer.Exit(result.exit_code)


def supervise(
    target: Launchable,
    stop: StopRequests,
    quiet: bool = False,
    as_json: bool = False,
    begun: Callable[[Path], None] | None = None,
) -> Result:
    """Runs the job of a target, recorded and shown; `begun` is told the directory of the run."""
    target.check()
    record = RunWriter.create(target.spec)
    if begun is not None:
        begun(record.directory)
    view = _view(target.spec, quiet, as_json)
    try:
        with job_metrics(target.spec, record.directory) as observers:
            result = Supervisor(target, record, [view, *observers]).run(stop)
    finally:
        view.close()
        record.close()
    if result.outcome != "stopped":
        _report(record.directory)
    return result


def _report(run: Path) -> None:
    """Leaves a report beside what a training of ours has measured."""
    if not (run / TRAINING_EVENTS).exists():
        return
    from launcher.report.write import write_report

    try:
        write_report([run])
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr)


def _view(spec: JobSpec, quiet: bool, as_json: bool) -> Lines | JsonLines:
    if as_json:
        return JsonLines()
    if quiet or not sys.stdout.isatty():
        return Lines(spec, quiet)
    return LiveTable(spec)


command = with_job_flags(run)
