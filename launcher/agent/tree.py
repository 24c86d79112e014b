"""The processes below this one, read from /proc. Linux only, standard library only."""

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Makes this process the parent of every descendant that loses its own parent."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with(parent: int) -> None:
    """In a child before exec: the kernel kills it when `parent` ends for any reason."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """Ids of all processes below `root` except zombies, parents before children."""
    children: dict[int, list[int]] = {}
    zombies = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            state, parent = _stat(int(name))
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append(int(name))
        if state == "Z":
            zombies.add(int(name))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(0), [])
        queue += below
        found += [pid for pid in below if pid not in zombies]
    return found


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process handles the signal itself: by a handler, or blocked for sigwait."""
    masks = _signal_mask(pid, "SigCgt") | _signal_mask(pid, "SigBlk")
    return bool(masks >> (number - 1) & 1)


def resident_bytes(pids: list[int]) -> int:
    """Resident memory of the processes, without pages shared through files."""
    total = 0
    for pid in pids:
        with suppress(OSError, ValueError):
            _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
            total += (int(resident) - int(shared)) * _PAGE_BYTES
    return total


def kernel_oom_kills() -> int:
    """How many processes the kernel has killed on this machine because memory ran out."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def started_at(pid: int) -> float:
    """Start of the process in seconds since boot, which with the id identifies a process."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> tuple[str, int]:
    # The name is in parentheses and may contain any character, parentheses included.
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[1])


def _signal_mask(pid: int, name: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1], 16)
    return 0
