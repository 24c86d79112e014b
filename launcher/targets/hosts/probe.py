"""What a host reports about itself before a job starts there. Standard library only.

The launcher calls it, and sends this source through ssh to the Python of every other host.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import socket
import struct
import sys
from pathlib import Path
from typing import Any

_SIOCGIFADDR = 0x8915
_MARK = "launcher-probe:"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The facts of this machine as plain data.

    `request` has the `directory` and the `command` of the job, the `root` of the launcher that
    requests, and the number of free `ports` to report.
    """
    root = _root(request["root"])
    asking, own = _connection()
    directory = Path(request["directory"])
    return {
        "python": platform.python_version(),
        "tensorflow": _version("tensorflow", "tensorflow-cpu"),
        "horovod": _version("horovod"),
        "root": root,
        "code": _digests(root, directory, request["command"]),
        "directory": directory.is_dir(),
        "launcher_address": asking,
        "address": own,
        "interface": _interface(own),
        "nodes": _nodes(root),
        "ports": _free_ports(request["ports"]),
    }


def report(request: dict[str, Any]) -> None:
    """Prints the answer after a mark, since the login shell may print other lines."""
    print(_MARK + json.dumps(answer(request)))


def find_answer(output: str) -> dict[str, Any] | None:
    """The answer in what a host has printed, or None."""
    for line in output.splitlines():
        if line.startswith(_MARK):
            return dict(json.loads(line.removeprefix(_MARK)))
    return None


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _root(asking: str) -> str | None:
    """The directory with the launcher on this host: the same path, else where it is installed."""
    if Path(asking, "launcher", "spec").is_dir():
        return asking
    spec = importlib.util.find_spec("launcher")
    return str(Path(spec.origin).parents[1]) if spec is not None and spec.origin else None


def _digests(root: str | None, directory: Path, command: list[str]) -> dict[str, str]:
    """Digests of the launcher, of syncbn, and of every file or module the command names."""
    places = {name: Path(root, name) for name in ("launcher", "syncbn")} if root else {}
    for word in command:
        if os.path.isfile(directory / word):  # never raises, even for a word too long for a path
            places[word] = directory / word
    if "-m" in command[:-1]:
        top = command[command.index("-m") + 1].partition(".")[0]
        local = [directory / top, directory / f"{top}.py"]
        places |= {path.name: path for path in local if os.path.exists(path) and top not in places}
    return {name: _digest(path) for name, path in places.items()}


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        total.update(str(file.relative_to(path)).encode())
        total.update(file.read_bytes())
    return total.hexdigest()


def _connection() -> tuple[str, str]:
    """The address of the launcher, and that of this host, on the ssh connection."""
    words = os.environ.get("SSH_CONNECTION", "127.0.0.1 0 127.0.0.1 0").split()
    return words[0], words[2]


def _interface(address: str) -> str | None:
    """The name of the network interface that has the address (IPv4)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            question = struct.pack("256s", name[:15].encode())
            try:
                found = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, question)[20:24]
            except OSError:
                continue
            if socket.inet_ntoa(found) == address:
                return name
    return None


def _nodes(root: str | None) -> list[list[int]]:
    if root is not None:
        sys.path.insert(0, root)
    try:
        from launcher.placement.slots import numa_nodes
    except ImportError:  # no launcher here, or an older one: `root` and `code` report it
        return [sorted(os.sched_getaffinity(0))]
    return numa_nodes()


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
