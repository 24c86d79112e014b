"""`launcher cancel`: stops a run from anywhere, also one whose launcher is gone."""

import time
from pathlib import Path
from typing import Annotated

import psutil
import typer

from launcher.cli.run_flags import Context, Namespace, Output, RunId, Target, on_cluster
from launcher.errors import LauncherError
from launcher.runs.processes import kill_processes_of
from launcher.runs.reader import find_run, launcher_of, read_run, read_spec

_CLOSING_SECONDS = 10.0  # for teardown after the ranks have had their time to save


def command(
    run: RunId = None,
    now: Annotated[bool, typer.Option("--now", help="Do not let the ranks save.")] = False,
    output: Output = Path("runs"),
    target: Target = None,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Stop a run: its ranks save, then it ends with exit code 143."""
    if on_cluster(target):
        from launcher.cli import cluster_verbs
        from launcher.targets.kubernetes.cluster import Cluster

        cluster_verbs.cancel(Cluster.connect(context, namespace), run, now)
        return
    directory = find_run(output, run)
    launcher = launcher_of(directory)
    process = launcher.process() if launcher is not None else None
    if process is None:
        left = kill_processes_of(directory)
        ended = f"ended {len(left)} processes it had left" if left else "nothing of it is left"
        print(f"{directory.name}: {read_run(directory).state}; {ended}")
        return
    _tell(process, directory)
    if now:
        time.sleep(0.2)  # two signals at once would count as one
        _tell(process, directory)
    spec = read_spec(directory)
    limit = time.monotonic() + spec.get("save_timeout", 30.0) + _CLOSING_SECONDS
    while launcher is not None and launcher.process() is not None:
        if time.monotonic() > limit:
            raise LauncherError(f"{directory.name} has not ended; try: launcher cancel --now")
        time.sleep(0.1)
    print(f"{directory.name}: {read_run(directory).state}")


def _tell(launcher: psutil.Process, directory: Path) -> None:
    try:
        launcher.terminate()
    except psutil.NoSuchProcess:
        pass  # it has ended meanwhile
    except psutil.AccessDenied:
        raise LauncherError(
            f"{directory.name} belongs to another user; as that user: launcher cancel"
        ) from None
