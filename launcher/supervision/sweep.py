"""The last net below the guards: processes of a run, known by a mark in their environment.

Catches what a guard could not end because something killed the guard itself. Ranks on this machine
carry the mark; on other hosts the guards are on their own.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

RUN_DIRECTORY = "LAUNCHER_RUN_DIR"
_MARK = "LAUNCHER_RUN_HERE"


def marked(environment: Mapping[str, str]) -> dict[str, str]:
    """The supervisor's environment for ranks on this machine."""
    return {**environment, _MARK: environment[RUN_DIRECTORY]}


def processes_of(run: Path) -> list[psutil.Process]:
    """Every living process on this machine that was started for the run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == str(run):
                found.append(process)
    return found


def kill_processes_of(run: Path) -> list[str]:
    """Kills them, looking again until none is left; returns their command lines."""
    killed = []
    for _ in range(20):
        alive = processes_of(run)
        if not alive:
            break
        for process in alive:
            with suppress(psutil.Error):
                killed.append(" ".join(process.cmdline()))
                process.kill()
        psutil.wait_procs(alive, timeout=0.2)
    return killed
