"""`launcher status`: the state of a job, from any terminal, even after its launcher has ended."""

from typing import Annotated

import typer

from launcher.cli.showing import follow, show
from launcher.cli.target_flags import JobName, with_target_flags
from launcher.targets import Target


def status(
    target: Target,
    run: JobName = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Update until the job ends.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The state as JSON.")] = False,
) -> None:
    """Show the state of a job, rank by rank, and why it failed if it did.

    Exits with the job's own code once it has ended, with 1 if its launcher was killed.
    """
    found = follow(target.follow(run), as_json) if watch else show(target.describe(run), as_json)
    raise typer.Exit(found.exit_code)


command = with_target_flags(status)
