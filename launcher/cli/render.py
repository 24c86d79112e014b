"""`launcher render`: prints what would run, and runs nothing."""

import json
from typing import Annotated

import typer

from launcher.cli.job_flags import with_job_flags
from launcher.spec import JobSpec
from launcher.spec.secrets import without_secrets
from launcher.targets import target_for


def render(
    spec: JobSpec,
    as_json: Annotated[bool, typer.Option("--json", help="The checked job as JSON.")] = False,
) -> None:
    """Print the commands or manifests of a job, and run nothing."""
    if as_json:
        print(json.dumps(without_secrets(spec), indent=2))
    else:
        print(target_for(spec).render(spec))


command = with_job_flags(render)
