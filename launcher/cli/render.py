"""`launcher render`: prints what would be run, and runs nothing."""

import json
from typing import Annotated

import typer

from launcher.cli.job_flags import target_of, with_job_flags
from launcher.spec import JobSpec
from launcher.spec.secrets import without_secrets


def render(
    spec: JobSpec,
    as_json: Annotated[bool, typer.Option("--json", help="The checked job as JSON.")] = False,
) -> None:
    """Print the commands of a job, with their environment, and run nothing."""
    print(json.dumps(without_secrets(spec), indent=2) if as_json else target_of(spec).render())


command = with_job_flags(render)
