"""`launcher cancel`: stops a job, even if its launcher has ended."""

from typing import Annotated

import typer

from launcher.cli.target_flags import JobName, with_target_flags
from launcher.targets import Target


def cancel(
    target: Target,
    run: JobName = None,
    now: Annotated[bool, typer.Option("--now", help="Do not let the ranks save.")] = False,
) -> None:
    """Stop a job: its ranks save, then it ends with exit code 143."""
    print(target.cancel(run, now))


command = with_target_flags(cancel)
