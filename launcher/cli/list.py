"""`launcher list`: all jobs of a target."""

import json
import sys
from typing import Annotated

import typer

from launcher.cli.showing import show_all
from launcher.cli.target_flags import with_target_flags
from launcher.targets import Target


def list_jobs(
    target: Target,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """List all jobs, the newest last."""
    jobs = target.list()
    if as_json:
        for job in jobs:
            print(json.dumps(job.row_as_json()))
    elif jobs:
        show_all(jobs)
    else:
        print(target.no_jobs_message(), file=sys.stderr)


command = with_target_flags(list_jobs)
