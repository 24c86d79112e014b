"""`launcher logs`: the output of a job's ranks in whole, prefixed lines, also while it runs."""

from typing import Annotated

import typer

from launcher.cli.target_flags import JobName, with_target_flags
from launcher.targets import LogQuery, Target


def logs(
    target: Target,
    run: JobName = None,
    rank: Annotated[int | None, typer.Option(help="One rank only.")] = None,
    attempt: Annotated[
        int | None, typer.Option(help="0 is the first.", show_default="the newest")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the job ends.")
    ] = False,
    worker: Annotated[
        int | None,
        typer.Option(help="The log of this container or pod.", show_default="leader"),
    ] = None,
) -> None:
    """Print the logs of a job, each line with its rank."""
    for line in target.logs(run, LogQuery(rank, attempt, worker, follow)):
        print(line, flush=follow)


command = with_target_flags(logs)
