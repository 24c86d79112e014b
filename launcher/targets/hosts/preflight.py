"""Checks every host before anything starts: reachable, with the same Python, packages and code.

All hosts in parallel, within `LIMIT_SECONDS`.
"""

import inspect
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import launcher
from launcher.errors import HostError, UsageError
from launcher.spec import Host, JobSpec
from launcher.targets.hosts import probe

CONNECT_SECONDS = 5
LIMIT_SECONDS = 20.0


@dataclass(frozen=True)
class HostFacts:
    """The facts that a host reports.

    `launcher_address` is the address of this machine as the host sees it, `address` and
    `interface` are those of the host itself; `nodes` are its cores by NUMA node.
    """

    name: str
    root: str
    launcher_address: str
    address: str
    interface: str
    nodes: tuple[tuple[int, ...], ...]
    ports: tuple[int, ...]


def ssh_command(spec: JobSpec, host: str, command: str) -> tuple[str, ...]:
    """ssh without prompts, with a short timeout, that detects a lost connection."""
    interval = max(1, int(spec.silence_timeout / 4))
    options = ["BatchMode=yes", f"ConnectTimeout={CONNECT_SECONDS}"]
    options += [f"ServerAliveInterval={interval}", "ServerAliveCountMax=3"]
    flags = [word for option in options for word in ("-o", option)]
    return (*spec.ssh, *flags, "-T", host, command)


def examine(spec: JobSpec, hosts: Sequence[Host]) -> list[HostFacts]:
    """The facts of all hosts. Raises HostError for one that cannot be reached, UsageError for one
    that differs from this machine."""
    here = probe.answer(_request(spec, 0))
    with ThreadPoolExecutor(max_workers=min(64, len(hosts))) as pool:
        answers = list(pool.map(lambda host: _ask(spec, host), hosts))
    unreachable = [problem for problem in answers if isinstance(problem, str)]
    if unreachable:
        raise HostError("\n".join(unreachable))
    facts, differences = [], []
    for host, there in zip(hosts, answers, strict=True):
        assert isinstance(there, dict)
        differences += _differences(spec, host.name, here, there)
        facts.append(
            HostFacts(
                name=host.name,
                root=str(there["root"]),
                launcher_address=there["launcher_address"],
                address=there["address"],
                interface=str(there["interface"]),
                nodes=tuple(tuple(node) for node in there["nodes"]),
                ports=tuple(there["ports"]),
            )
        )
    if differences:
        raise UsageError("\n".join(differences))
    return facts


def _request(spec: JobSpec, ports: int) -> dict[str, Any]:
    return {
        "directory": str(spec.directory),
        "command": list(spec.command),
        "root": str(Path(launcher.__file__).parents[1]),
        "ports": ports,
    }


def _ask(spec: JobSpec, host: Host) -> dict[str, Any] | str:
    """The answer of the host, or one line that says why there is none."""
    source = inspect.getsource(probe)
    request = json.dumps(_request(spec, host.slots))
    text = f"{source}\nreport(json.loads({request!r}))\n"
    python = shlex.quote(sys.executable)
    command = ssh_command(spec, host.name, f"exec {python} -I -")
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"host {host.name} has not answered within {LIMIT_SECONDS:.0f} s"
    except OSError as error:
        raise UsageError(f"ssh: {command[0]} cannot be run: {error.strerror}") from None
    found = probe.find_answer(done.stdout)
    if found is not None:
        return found
    lines = done.stderr.strip().splitlines()
    if done.returncode == 255:
        return f"host {host.name} cannot be reached: {lines[-1] if lines else 'ssh failed'}"
    if done.returncode in {126, 127}:
        raise UsageError(
            f"host {host.name} has no {sys.executable}; set it up as this machine: make setup"
        )
    raise UsageError(f"host {host.name}: the probe failed: {lines[-1] if lines else 'no output'}")


def _differences(
    spec: JobSpec, name: str, here: dict[str, Any], there: dict[str, Any]
) -> list[str]:
    found = []
    if there["root"] is None:
        found.append(
            f"host {name}: the launcher is not installed; set it up as this machine: make setup"
        )
    if not there["directory"]:
        found.append(f"host {name}: no directory {spec.directory}; copy or mount it there")
    labels = {"python": "Python", "tensorflow": "TensorFlow", "horovod": "Horovod"}
    for key, label in labels.items():
        if here[key] != there[key]:
            has = there[key] or "none"
            found.append(f"host {name}: {label} {has}, here {here[key] or 'none'}; make them equal")
    for file, digest in here["code"].items():
        if there["root"] is not None and there["code"].get(file) != digest:
            problem = "is missing" if file not in there["code"] else "differs from the one here"
            found.append(f"host {name}: {file} {problem}; copy it: rsync -a {spec.directory}/ ...")
    if there["interface"] is None:
        found.append(f"host {name}: no network interface has its address {there['address']}")
    return found
