"""The flags that select jobs, shared by status, logs, list and cancel."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from launcher import options
from launcher.targets import Location, load_target

JobName = Annotated[
    str | None,
    typer.Argument(
        help="A run's id or the start of one, or a job's name for its newest run.",
        show_default="the newest",
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", envvar="LAUNCHER_OUTPUT", help="Contains one directory per run."
    ),
]


def _location(
    output: Output = Path("runs"),
    target: Annotated[
        str | None,
        typer.Option(help="The target the job was submitted to.", show_default="this machine"),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", help="Of the cluster.", show_default="its own"),
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Of the kubeconfig.", show_default="the current one")
    ] = None,
) -> None:
    """Declares the parameters."""


def with_target_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """Lets a verb that takes a `target` take these flags instead."""
    shared = inspect.signature(_location).parameters
    own = dict(inspect.signature(verb).parameters)
    del own["target"]

    def command(**values: Any) -> None:
        name = values.pop("target")
        where = Location(**{flag: values.pop(flag) for flag in ("output", "namespace", "context")})
        verb(target=load_target(name, where), **values)

    return options.with_parameters(command, [*own.values(), *shared.values()], verb.__doc__)
