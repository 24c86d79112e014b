"""`launcher health`: for a container's health check and a pod's liveness probe.

The supervisor normally ends a hang itself; this check covers the case that it cannot.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import psutil
import typer

from launcher.heartbeat import VARIABLE, Beat, read


def command(
    limit: Annotated[
        float, typer.Option(min=1, help="Seconds that a rank may take for a training step.")
    ] = 900.0,
) -> None:
    """Exit with 1 if a rank here is stuck; with 0 if all progress, or none has started."""
    late = [
        f"process {pid} has finished no step for {age:.0f} s"
        for pid, beat in beats()
        if beat.phase == "training" and (age := time.time() - beat.time) > limit
    ]
    if late:
        print("\n".join(late), file=sys.stderr)
        raise typer.Exit(1)


def beats() -> Iterator[tuple[int, Beat]]:
    """The last record of every rank that runs here as this user."""
    seen = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            path = process.environ().get(VARIABLE)
            if path is None or path in seen or process.uids().real != os.getuid():
                continue
            seen.add(path)  # child processes of the rank inherit the variable
            if (beat := read(Path(path))) is not None:
                yield process.pid, beat
