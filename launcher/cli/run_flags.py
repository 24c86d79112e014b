"""The flags that name a recorded run, shared by status, logs, list and cancel."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.errors import UsageError

RunId = Annotated[
    str | None,
    typer.Argument(
        help="A run's id or its beginning, or a job's name for its newest run.",
        show_default="the newest",
    ),
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", envvar="LAUNCHER_OUTPUT", help="Holds one directory per run."),
]
Target = Annotated[
    str | None,
    typer.Option(help="kubernetes for a job on a cluster.", show_default="runs on this machine"),
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Of the cluster.", show_default="its own")
]
Context = Annotated[
    str | None, typer.Option(help="Of the kubeconfig.", show_default="the current one")
]


def on_cluster(target: str | None) -> bool:
    """Whether a verb is about a job on a cluster. Raises UsageError for any other target."""
    if target not in {None, "local", "hosts", "kubernetes"}:
        raise UsageError(
            f"--target: expected kubernetes, or none for runs on this machine. Received: {target!r}"
        )
    return target == "kubernetes"
