"""`launcher status`: where a run stands, from any terminal, also after its launcher is gone."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from launcher.cli.run_flags import Context, Namespace, Output, RunId, Target, on_cluster
from launcher.runs.reader import RunState, find_run, read_run, read_spec
from launcher.spec import Metrics
from launcher.terminal.console import console
from launcher.terminal.table import render
from launcher.terminal.words import cause_lines

_SECONDS_BETWEEN_LOOKS = 1.0


def command(
    run: RunId = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until it ends.")] = False,
    output: Output = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="The state as JSON.")] = False,
    target: Target = None,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Show where a run stands, rank by rank, and why it failed if it did.

    Exits with the run's own code once it has ended, with 1 if its launcher was killed.
    """
    if on_cluster(target):
        from launcher.cli import cluster_verbs
        from launcher.targets.kubernetes.cluster import Cluster

        cluster_verbs.status(Cluster.connect(context, namespace), run, watch, as_json)
    directory = find_run(output, run)
    state = read_run(directory)
    if as_json:
        print(json.dumps({**dataclasses.asdict(state), "seconds": round(state.seconds, 1)}))
    elif watch and not state.ended:
        with Live(_picture(directory, state), console=console(), refresh_per_second=4) as live:
            while not state.ended:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                state = read_run(directory)
                live.update(_picture(directory, state))
    else:
        console().print(_picture(directory, state))
    raise typer.Exit(_exit_code(state))


def _picture(directory: Path, state: RunState) -> RenderableType:
    spec: dict[str, Any] = read_spec(directory)
    metrics = Metrics(**spec["metrics"]) if spec.get("metrics") else None
    parts = [render(state, spec.get("restart", {}).get("max_restarts"), metrics)]
    if state.cause is not None:
        words = "\n".join(cause_lines(state.cause, None))
        parts.append(Text(words, style="red" if state.state == "failed" else "yellow"))
    if state.state == "lost":
        parts.append(Text("its launcher was killed; its ranks ended with it", style="red"))
    return Group(*parts)


def _exit_code(state: RunState) -> int:
    if state.exit_code is not None:
        return state.exit_code
    return 1 if state.state == "lost" else 0
