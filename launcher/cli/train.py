"""`launcher train`: the trainer that every rank runs, `python -m launcher.train`."""

from typing import Annotated

import typer


def command(
    arguments: Annotated[list[str] | None, typer.Argument(help="Of launcher.train.")] = None,
) -> None:
    """Train a model on the ranks that this is started on."""
    from launcher.train.__main__ import main

    main(arguments or [])
