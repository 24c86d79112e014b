"""`launcher logs`: what the ranks have said, whole lines, prefixed; also while they say it."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.run_flags import Context, Namespace, Output, RunId, Target, on_cluster
from launcher.errors import UsageError
from launcher.runs import layout
from launcher.runs.logs import LogReader
from launcher.runs.reader import find_run, read_run

_SECONDS_BETWEEN_LOOKS = 0.3


def command(
    run: RunId = None,
    rank: Annotated[int | None, typer.Option(help="One rank only.")] = None,
    attempt: Annotated[
        int | None, typer.Option(help="0 is the first.", show_default="the newest")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until it ends.")] = False,
    output: Output = Path("runs"),
    target: Target = None,
    namespace: Namespace = None,
    context: Context = None,
    worker: Annotated[
        int | None, typer.Option(help="On a cluster, one pod's own words.", show_default="leader")
    ] = None,
) -> None:
    """Print the logs of a run, each line with its rank."""
    if on_cluster(target):
        from launcher.cli import cluster_verbs
        from launcher.targets.kubernetes.cluster import Cluster

        cluster_verbs.logs(Cluster.connect(context, namespace), run, worker, rank, follow)
        return
    directory = find_run(output, run)
    state = read_run(directory)
    if rank is not None and rank not in state.ranks:
        raise UsageError(f"--rank: expected 0 to {len(state.ranks) - 1}. Received: {rank}")
    chosen = state.attempt if attempt is None else attempt
    if not layout.logs_directory(directory, chosen).is_dir() and not follow:
        raise UsageError(f"no logs of attempt {chosen} in {directory}")
    readers: dict[Path, LogReader] = {}
    while True:
        ended = not follow or read_run(directory).ended
        newest = read_run(directory).attempt if follow and attempt is None else chosen
        for path in layout.logs(directory, range(chosen, newest + 1), rank):
            reader = readers.setdefault(path, LogReader(path))
            for line in reader.lines():
                sys.stdout.write(f"[{layout.log_label(path)}] {line}\n")
        sys.stdout.flush()
        if ended:
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)
