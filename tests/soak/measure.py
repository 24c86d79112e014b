"""What a job holds at one moment, and whether it has grown between two parts of a run."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

COUNTS = ("processes", "descriptors", "threads", "ports", "files", "temporary")
# More than this much at the end, over the same time again, is a leak and not an allocator's habit.
MEMORY_GROWTH = 0.03
_SETTLED = 0.4  # the part of a run in which caches fill


@dataclass(frozen=True)
class Look:
    """Sums over the launcher, its guards and its ranks; `files` counts those in the job's folders.

    `memory` is what is theirs alone, in bytes; `temporary` are files in their TMPDIR.
    """

    seconds: float
    processes: int
    memory: int
    descriptors: int
    threads: int
    ports: int
    files: int
    temporary: int


def look(launcher: psutil.Process, folder: Path, temporary: Path, seconds: float) -> Look:
    family = [launcher, *launcher.children(recursive=True)]
    memory = descriptors = threads = ports = counted = 0
    for process in family:
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            memory += process.memory_full_info().uss
            descriptors += process.num_fds()
            threads += process.num_threads()
            ports += sum(c.status == psutil.CONN_LISTEN for c in process.net_connections())
            counted += 1
    files, left = _files(folder), _files(temporary)
    return Look(seconds, counted, memory, descriptors, threads, ports, files, left)


def _files(folder: Path) -> int:
    """How many there are below the folder; what vanishes meanwhile does not count."""
    return sum(len(names) for _, _, names in os.walk(folder))


def growth(looks: Sequence[Look]) -> list[str]:
    """What has grown since the run had settled; empty where nothing has."""
    settled = [one for one in looks if one.seconds >= _SETTLED * looks[-1].seconds]
    half = len(settled) // 2
    first, second = settled[:half], settled[half:]
    found = []
    for name in COUNTS:
        # Looked at in any moment: within a save there is a file and a descriptor more.
        before = max(getattr(one, name) for one in first)
        after = min(getattr(one, name) for one in second[-3:])
        if after > before:
            found.append(f"{name}: {before} at most, {after} at least at the end")
    before, after = (sorted(one.memory for one in part)[len(part) // 2] for part in (first, second))
    if after > (1 + MEMORY_GROWTH) * before:
        found.append(f"memory: {before / 1e6:.1f} MB, then {after / 1e6:.1f} MB")
    return found
