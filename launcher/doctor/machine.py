"""The machine: cores and threads, shared memory, open files, disk, ports."""

import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launcher.doctor.finding import Finding, State
from launcher.placement.slots import numa_nodes

_SHARED_MEMORY_BYTES = 512 << 20  # for buffers of NCCL and MPI; Docker's default is 64 MiB
_OPEN_FILES = 4096
_CAP_SYS_RESOURCE = 24
_DISK_BYTES = 2 << 30
_FEW_EPHEMERAL_PORTS = 1000


def check_cores() -> Iterator[Finding]:
    """The cores that this process may use, and whether OMP_NUM_THREADS exceeds them."""
    nodes = numa_nodes()
    cores, present = sum(map(len, nodes)), os.cpu_count() or 1
    text = f"{cores} of {present}, {len(nodes)} NUMA node{'s' * (len(nodes) > 1)}"
    quota = _quota()
    if quota is not None and quota < cores:
        text += f"; a container limit of {quota:g} cores"
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > cores:
        text += f"; OMP_NUM_THREADS={threads} is more than that"
        yield Finding("cores", "warning", text, "unset OMP_NUM_THREADS")
        return
    yield Finding("cores", "ok", text)


def check_memory() -> Iterator[Finding]:
    """Shared memory, which the ranks of one machine communicate through."""
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        yield Finding("shared memory", "warning", "no /dev/shm", "mount -t tmpfs tmpfs /dev/shm")
        return
    fix = "mount -o remount,size=1g /dev/shm  (docker run --shm-size=1g)"
    yield _at_least("shared memory", size, _SHARED_MEMORY_BYTES, _bytes(size), fix)


def check_limits() -> Iterator[Finding]:
    """The limit of open files, of which each rank needs several per peer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536
    fix = f"ulimit -n {min(hard, wanted) if hard >= _OPEN_FILES else wanted}"
    if 0 <= hard < _OPEN_FILES and not _may_raise_limits():
        fix = (
            f"echo '* - nofile {wanted}' >> /etc/security/limits.conf as root, then log in again "
            f"(docker run --ulimit nofile={wanted})"
        )
    yield _at_least("open files", soft if soft >= 0 else 1 << 30, _OPEN_FILES, str(soft), fix)


def _may_raise_limits() -> bool:
    """Whether this process may set limits above the hard ones (CAP_SYS_RESOURCE)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)


def check_disk(output: Path) -> Iterator[Finding]:
    """Space and permission to write where runs are recorded."""
    directory = output.absolute()
    while not directory.exists():
        directory = directory.parent
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        text = f"{directory} cannot be written: {error.strerror}"
        yield Finding("disk", "broken", text, "choose another directory: --output DIRECTORY")
        return
    free = shutil.disk_usage(directory).free
    text = f"{_bytes(free)} free in {directory}"
    yield _at_least("disk", free, _DISK_BYTES, text, "free space, or use --output DIRECTORY")


def check_ports() -> Iterator[Finding]:
    """Loopback, the host name, and the number of ephemeral ports."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        text = f"loopback does not work: {error.strerror}"
        yield Finding("ports", "broken", text, "ip link set lo up")
        return
    first, last = _port_range()
    count = last - first + 1
    text = f"{count} ephemeral ports ({first} to {last})"
    fix = "sysctl -w net.ipv4.ip_local_port_range='32768 60999'"
    yield _at_least("ports", count, _FEW_EPHEMERAL_PORTS, text, fix)
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        text = f"{socket.gethostname()} does not resolve; some backends look up their own host"
        fix = f"echo 127.0.1.1 {socket.gethostname()} >> /etc/hosts"
        yield Finding("host name", "warning", text, fix)


def _at_least(name: str, value: int, wanted: int, text: str, fix: str) -> Finding:
    state: State = "ok" if value >= wanted else "warning"
    return Finding(name, state, text, "" if state == "ok" else fix)


def _quota() -> float | None:
    """The number of cores that the control group permits, if it limits them."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _port_range() -> tuple[int, int]:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
        first, last = map(int, text.split())
    except (OSError, ValueError):
        return 32768, 60999
    return first, last


def _bytes(count: int) -> str:
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
