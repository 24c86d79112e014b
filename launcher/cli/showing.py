"""How the verbs show jobs: one, one as it changes, or many in a table."""

import json
import sys
from collections.abc import Iterator, Sequence

from rich.live import Live
from rich.table import Table

from launcher.targets.base import JobStatus
from launcher.terminal.console import console


def show(job: JobStatus, as_json: bool) -> JobStatus:
    """Prints all there is to see of a job."""
    if as_json:
        print(json.dumps(job.as_json()), flush=True)
    else:
        console().print(job.picture())
    return job


def follow(looks: Iterator[JobStatus], as_json: bool) -> JobStatus:
    """Shows a job as it changes, and returns it as it has ended.

    On a terminal in place; else as a line for each change, and all there is to see at the end.
    """
    if as_json:
        for job in looks:
            show(job, as_json)
    elif sys.stdout.isatty():
        with Live(console=console(), refresh_per_second=4) as live:
            for job in looks:
                live.update(job.picture())
    else:
        said = ""
        for job in looks:
            if job.summary() != said and not job.ended:
                print(said := job.summary(), flush=True)
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
