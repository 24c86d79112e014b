"""One job from its first attempt to its report: recorded, measured, shown and supervised."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from launcher.errors import LauncherError
from launcher.metrics.serving import job_metrics
from launcher.runs.events import Event
from launcher.runs.layout import TRAINING_EVENTS
from launcher.runs.writer import RunWriter
from launcher.supervision.stop import StopRequests
from launcher.supervision.supervisor import Launchable, Result, Supervisor


class View(Protocol):
    """An observer that shows events to a person or a program."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


def supervise(
    job: Launchable, stop: StopRequests, make_view: Callable[[], View], run: str | None = None
) -> Result:
    """Runs the job to its end; the view is made once the job can start, and closed.

    `run` is the name of the run, which is continued if it exists; None to choose one.
    """
    job.check()
    record = RunWriter.create(job.spec, run)
    view = make_view()
    try:
        with job_metrics(job.spec, record.directory) as observers:
            result = Supervisor(job, record, [view, *observers]).run(stop)
    finally:
        view.close()
        record.close()
    if result.outcome != "stopped":
        _report(record.directory)
    return result


def _report(run: Path) -> None:
    """Writes a report from what launcher.train has measured, if it did."""
    if not (run / TRAINING_EVENTS).exists():
        return
    from launcher.report.write import write_report

    try:
        write_report([run])
    except LauncherError as error:
        print(f"launcher: {error}", file=sys.stderr)
