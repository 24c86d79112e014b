"""`launcher submit`: starts a job in the background and returns as soon as it runs."""

from typing import Annotated

import typer

from launcher.cli.job_flags import with_job_flags
from launcher.cli.showing import follow
from launcher.spec import JobSpec
from launcher.targets import target_for
from launcher.terminal.words import next_commands


def submit(
    spec: JobSpec,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
) -> None:
    """Start a supervised job in the background, and print the commands to continue with."""
    target = target_for(spec)
    name, done = target.submit(spec)
    commands = next_commands(name, target.flags(), running=True)
    print("\n  ".join([done, *commands]), flush=True)
    if wait:
        raise typer.Exit(follow(target.follow(name), as_json=False).exit_code)


command = with_job_flags(submit)
