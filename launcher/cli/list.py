"""`launcher list`: all runs in the output directory."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from launcher.cli.run_flags import Context, Namespace, Output, Target, on_cluster
from launcher.runs.layout import run_directories
from launcher.runs.reader import RunState, read_run
from launcher.terminal.console import console
from launcher.terminal.words import duration


def command(
    output: Output = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    target: Target = None,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """List all runs, the newest last."""
    if on_cluster(target):
        from launcher.cli import cluster_verbs
        from launcher.targets.kubernetes.cluster import Cluster

        cluster_verbs.show_jobs(Cluster.connect(context, namespace), as_json)
        return
    runs = [read_run(directory) for directory in run_directories(output)]
    if as_json:
        for run in runs:
            print(json.dumps(_fields(run)))
        return
    if not runs:
        print(f"no runs in {output}; start one: launcher run -np 2 -- COMMAND", file=sys.stderr)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "began", "took", "ranks", "restarts", "cause"):
        table.add_column(name, no_wrap=name != "cause")
    for run in runs:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.began)) if run.began else ""
        counts = (str(len(run.ranks)), str(run.attempt), run.cause["class"] if run.cause else "")
        table.add_row(run.id, run.state, began, duration(run.seconds), *counts)
    console().print(table)


def _fields(run: RunState) -> dict[str, str | float | int | None]:
    return {
        "id": run.id,
        "state": run.state,
        "began": run.began,
        "seconds": round(run.seconds, 1),
        "ranks": len(run.ranks),
        "restarts": run.attempt,
        "exit_code": run.exit_code,
        "cause": run.cause["class"] if run.cause else None,
    }
