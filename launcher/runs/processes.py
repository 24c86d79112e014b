"""The processes of a run on this machine: its launcher, and its ranks, marked by a variable.

Kills what an agent could not because it was killed itself. Ranks on other hosts do not have the
variable: there only the agents end them.
"""

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from launcher.agent import tree

RUN_DIRECTORY = "LAUNCHER_RUN_DIR"
_MARK = "LAUNCHER_RUN_HERE"


@dataclass(frozen=True)
class ProcessIdentity:
    """A process id with its start in seconds since boot, since the kernel reuses ids.

    `host` is empty in records of versions that did not write it.
    """

    pid: int
    started: float
    host: str = ""

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity":
        return cls(pid, tree.started_at(pid), socket.gethostname())

    @property
    def elsewhere(self) -> bool:
        """Whether it is a process of another machine that shares the record's file system."""
        return self.host not in {"", socket.gethostname()}

    def process(self) -> psutil.Process | None:
        """The running process, or None if it has ended, is elsewhere, or its id is reused."""
        try:
            if self.elsewhere:
                return None
            if tree.started_at(self.pid) != self.started:
                return None
            process = psutil.Process(self.pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        except (OSError, psutil.Error):
            return None


def marked(environment: Mapping[str, str]) -> dict[str, str]:
    """The supervisor's environment, with the variable that marks ranks on this machine."""
    return {**environment, _MARK: environment[RUN_DIRECTORY]}


def processes_of(run: Path) -> list[psutil.Process]:
    """Every running process on this machine that was started for the run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == str(run):
                found.append(process)
    return found


def kill_processes_of(run: Path) -> list[str]:
    """Kills them, repeatedly until none is left; returns their command lines."""
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
