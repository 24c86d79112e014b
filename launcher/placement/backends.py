"""How the ranks of one job find each other: Horovod over Gloo, a TF_CONFIG cluster, or mpirun."""

import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil

from launcher.agent.process_spec import PROCESS_SPEC_VARIABLE
from launcher.errors import MissingToolError, UsageError
from launcher.placement.slots import Slot
from launcher.spec import JobSpec

LOOPBACK = "127.0.0.1"
CHOSEN_AT_START = "CHOSEN_AT_START"


def require(backend: str) -> None:
    """Raises MissingToolError if the backend is not installed."""
    if backend == "horovod" and find_spec("horovod") is None:
        raise MissingToolError(
            "Horovod is not installed for this Python; build it: python -m launcher install-horovod"
        )
    if backend == "mpi" and find_mpirun() is None:
        raise MissingToolError("mpirun is not installed; pip install 'syncbn[mpi]'")
    if backend == "tf" and find_spec("tensorflow") is None:
        raise MissingToolError("TensorFlow is not installed; pip install 'syncbn[cpu]'")


def choose_backend(ranks: int) -> tuple[str, str]:
    """The backend for a job that names none, and why: the fastest one installed.

    Between CPUs that is MPI. Where there are GPUs, `syncbn.init` lets Horovod reduce on them in a
    job of mpirun as well.
    """
    if ranks == 1:
        return "local", "a single rank"
    installed = [backend for backend in ("mpi", "horovod", "tf") if _is_installed(backend)]
    if "mpi" in installed and find_spec("mpi4py") is None:
        installed.remove("mpi")
    if {"mpi", "horovod"} <= {*installed} and not _horovod_has_mpi():
        return "horovod", "the installed Horovod was built without MPI"
    if not installed:
        return "local", "no other is installed"
    return installed[0], "the fastest one installed"


def _is_installed(backend: str) -> bool:
    try:
        require(backend)
    except MissingToolError:
        return False
    return True


def _horovod_has_mpi() -> bool:
    """Whether `hvd.init` works below mpirun, without importing Horovod, which loads TensorFlow."""
    package = find_spec("horovod")
    assert package is not None
    assert package.origin is not None
    libraries = (Path(package.origin).parent / "tensorflow").glob("mpi_lib*.so")
    return any(b"MPI_Comm_rank" in library.read_bytes() for library in libraries)


@contextmanager
def rendezvous(slots: Sequence[Slot], address: str, port: int) -> Iterator[int]:
    """Serves Horovod's rendezvous on `address` while open; yields the port, chosen if 0.

    Raises UsageError when the port is taken.
    """
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    try:
        server = RendezvousHTTPServer((address, port), RendezvousHandler, 0)
    except OSError as error:
        raise UsageError(
            f"rendezvous_port: {address}:{port} cannot be used ({error.strerror}"
            f"{_holder(port)}); choose another, or 0 for a free one"
        ) from None
    server.daemon_threads = True
    server.init(slots)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def gloo_environment(slot: Slot, address: str, port: int | str, interface: str) -> dict[str, str]:
    """The variables that horovodrun would set for the rank."""
    return {
        "HOROVOD_RANK": str(slot.rank),
        "HOROVOD_SIZE": str(slot.size),
        "HOROVOD_LOCAL_RANK": str(slot.local_rank),
        "HOROVOD_LOCAL_SIZE": str(slot.local_size),
        "HOROVOD_CROSS_RANK": str(slot.cross_rank),
        "HOROVOD_CROSS_SIZE": str(slot.cross_size),
        "HOROVOD_HOSTNAME": slot.hostname,
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_GLOO_IFACE": interface,
        # The launcher detects a peer that dies; a slow start should not fail after 30 s.
        "HOROVOD_GLOO_TIMEOUT_SECONDS": os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS", "300"),
    }


@contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Free ports on loopback, reserved until the context is left.

    They are bound here; TensorFlow can bind them too (TF_GRPC_REUSE_PORT), other programs cannot.
    """
    held = []
    try:
        for _ in range(count):
            holder = socket.socket()
            held.append(holder)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind((LOOPBACK, 0))
        yield [holder.getsockname()[1] for holder in held]
    finally:
        for holder in held:
            holder.close()


def tf_environment(rank: int, workers: Sequence[str]) -> dict[str, str]:
    """TF_CONFIG for one of the workers `host:port`."""
    task = {"cluster": {"worker": list(workers)}, "task": {"type": "worker", "index": rank}}
    return {"TF_CONFIG": json.dumps(task), "TF_GRPC_REUSE_PORT": "1"}


def find_mpirun() -> str | None:
    """mpirun in the directory of this Python, else on PATH."""
    return shutil.which("mpirun", path=str(Path(sys.executable).parent)) or shutil.which("mpirun")


def mpirun_command(
    spec: JobSpec, agent: Sequence[str], hosts: Sequence[str] = (), shell: Sequence[str] = ()
) -> list[str]:
    """mpirun around one agent per rank.

    `hosts` as NAME:SLOTS, none for this machine alone; mpirun starts its daemons there with
    `SHELL NAME COMMAND`.
    """
    command = [find_mpirun() or "mpirun", "-np", str(spec.ranks), "--bind-to", "none"]
    command += ["--tag-output", "--stdin", "none", "-x", PROCESS_SPEC_VARIABLE]
    # When mpirun itself aborts a job, the agents end their ranks first, within two seconds.
    command += ["--mca", "odls_base_sigkill_timeout", "3"]
    if not hosts:
        # Open MPI requires ssh even for ranks of this machine, unless the launcher is `isolated`.
        command += ["--oversubscribe", "--mca", "plm", "isolated"]
        # The ranks use shared memory: without TCP they open no port. mpirun itself needs one.
        command += ["--mca", "btl", "^tcp", "--mca", "oob_tcp_if_include", "lo"]
        return [*command, *agent]
    command += ["--host", ",".join(hosts)]
    command += ["--mca", "plm_rsh_agent", " ".join(shell), "--mca", "plm_rsh_no_tree_spawn", "1"]
    for name, value in keepalive_parameters(spec).items():
        command += ["--mca", name, value]
    return [*command, *agent]


def keepalive_parameters(spec: JobSpec) -> dict[str, str]:
    """With these, mpirun and its daemons detect a lost connection after seconds, not minutes."""
    seconds = str(max(1, int(spec.silence_timeout / 4)))
    settings = {"time": seconds, "intvl": seconds, "probes": "3"}
    return {f"oob_tcp_keepalive_{name}": value for name, value in settings.items()}


def mpi_environment() -> dict[str, str]:
    """What mpirun itself needs: permission to run as root, as which containers often run."""
    allowed = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
    return dict.fromkeys(allowed, "1") if os.geteuid() == 0 else {}


def _holder(port: int) -> str:
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return ""
    for connection in connections:
        if connection.laddr and connection.laddr.port == port and connection.pid:
            try:
                name = psutil.Process(connection.pid).name()
            except psutil.Error:
                continue
            return f", held by {name}, process {connection.pid}"
    return ""
