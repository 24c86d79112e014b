"""`launcher status`: where a job stands, from any terminal, also after its launcher is gone."""

from typing import Annotated

import typer

from launcher.cli.showing import follow, show
from launcher.cli.target_flags import JobName, with_target_flags
from launcher.targets import Target


def status(
    target: Target,
    run: JobName = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until it ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The state as JSON.")] = False,
) -> None:
    """Show where a job stands, rank by rank, and why it failed if it did.

    Exits with the job's own code once it has ended, with 1 if its launcher was killed.
    """
    found = follow(target.follow(run), as_json) if watch else show(target.describe(run), as_json)
    raise typer.Exit(found.exit_code)


command = with_target_flags(status)
