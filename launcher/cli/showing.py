"""How the verbs print jobs: one, one as it changes, or many in a table."""

import json
import sys
from collections.abc import Iterator, Sequence

from rich.live import Live
from rich.table import Table

from launcher.targets.base import JobStatus
from launcher.terminal.console import console


def show(job: JobStatus, as_json: bool) -> JobStatus:
    """Prints the full status of a job."""
    if as_json:
        print(json.dumps(job.as_json()), flush=True)
    else:
        console().print(job.renderable())
    return job


def follow(statuses: Iterator[JobStatus], as_json: bool) -> JobStatus:
    """Prints a job as it changes, and returns its final status.

    On a terminal in place; else one line per change, and the full status at the end.
    """
    if as_json:
        for job in statuses:
            show(job, as_json)
    elif sys.stdout.isatty():
        with Live(console=console(), refresh_per_second=4) as live:
            for job in statuses:
                live.update(job.renderable())
    else:
        printed = ""
        for job in statuses:
            if job.summary() != printed and not job.ended:
                print(printed := job.summary(), flush=True)
        show(job, as_json)
    return job


def show_all(jobs: Sequence[JobStatus]) -> None:
    """Prints a table of jobs."""
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(jobs[0].row()):
        table.add_column(name, no_wrap=number == 0)
    for job in jobs:
        table.add_row(*job.row().values())
    console().print(table)
