"""Starts the ranks of one job: with `mpirun`, `horovodrun`, Gloo, or as a TF_CONFIG cluster."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from launcher.placement import backends
from launcher.placement.slots import assign_slots
from launcher.spec import Host

_REPOSITORY = Path(__file__).resolve().parents[2]
_SCRIPTS = Path(sys.executable).parent
# Variables that the ranks must not inherit from a job that runs the benchmark.
_RANK_VARIABLES = ("TF_CONFIG", "HOROVOD_", "OMPI_", "PMI_", "PMIX_", "LAUNCHER_")
_THREADS = (
    "TF_NUM_INTRAOP_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)

Starter = Callable[[list[str], int, dict[str, str], Path, ExitStack], list[subprocess.Popen[bytes]]]


def start(
    launcher: str,
    command: list[str],
    ranks: int,
    environment: Mapping[str, str],
    log: Path,
    resources: ExitStack,
    device: str = "cpu",
) -> list[subprocess.Popen[bytes]]:
    """Starts `command` on every rank.

    Args:
        launcher: One of LAUNCHERS.
        command: The command of one rank.
        ranks: Number of ranks.
        environment: Additional variables of every rank.
        log: File for all output.
        resources: Gets the resources to close after the job (ports, a rendezvous).
        device: `"cpu"` hides the GPUs.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_RANK_VARIABLES)}
    variables = inherited | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    variables |= dict.fromkeys(_THREADS, "1") | backends.mpi_environment()
    variables["PATH"] = f"{_SCRIPTS}{os.pathsep}{inherited.get('PATH', os.defpath)}"
    modules = [str(_REPOSITORY), inherited.get("PYTHONPATH", "")]
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, modules))
    if device == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return LAUNCHERS[launcher](command, ranks, variables | dict(environment), log, resources)


def _mpirun(
    command: list[str], ranks: int, environment: dict[str, str], log: Path, _: ExitStack
) -> list[subprocess.Popen[bytes]]:
    mpirun = [backends.find_mpirun() or "mpirun", "-np", str(ranks)]
    for layer in ("btl_tcp_if_include", "oob_tcp_if_include"):
        mpirun += ["--mca", layer, "lo"]
    if ranks > len(os.sched_getaffinity(0)):
        mpirun += ["--oversubscribe"]
    return [_spawn([*mpirun, *command], environment, log, signal.SIGTERM)]


def _horovodrun(
    command: list[str], ranks: int, environment: dict[str, str], log: Path, _: ExitStack
) -> list[subprocess.Popen[bytes]]:
    found = shutil.which("horovodrun", path=environment["PATH"]) or "horovodrun"
    return [_spawn([found, "-np", str(ranks), *command], environment, log, signal.SIGTERM)]


def _gloo(
    command: list[str], ranks: int, environment: dict[str, str], log: Path, resources: ExitStack
) -> list[subprocess.Popen[bytes]]:
    slots = assign_slots(ranks, [Host(name="localhost", slots=ranks)])
    port = resources.enter_context(backends.rendezvous(slots, backends.LOOPBACK, 0))
    return [
        _spawn(
            command,
            environment | backends.gloo_environment(slot, backends.LOOPBACK, port, "lo"),
            log,
            signal.SIGKILL,
        )
        for slot in slots
    ]


def _cluster(
    command: list[str], ranks: int, environment: dict[str, str], log: Path, resources: ExitStack
) -> list[subprocess.Popen[bytes]]:
    ports = resources.enter_context(backends.held_ports(ranks))
    workers = [f"{backends.LOOPBACK}:{port}" for port in ports]
    return [
        _spawn(command, environment | backends.tf_environment(rank, workers), log, signal.SIGKILL)
        for rank in range(ranks)
    ]


def _alone(
    command: list[str], ranks: int, environment: dict[str, str], log: Path, _: ExitStack
) -> list[subprocess.Popen[bytes]]:
    if ranks != 1:
        raise ValueError(f"one process alone has one rank. Received: ranks={ranks}")
    return [_spawn(command, environment, log, signal.SIGKILL)]


LAUNCHERS: dict[str, Starter] = {
    "mpirun": _mpirun,
    "horovodrun": _horovodrun,
    "gloo": _gloo,
    "cluster": _cluster,
    "alone": _alone,
}


def _spawn(
    command: list[str], environment: dict[str, str], log: Path, death_signal: int
) -> subprocess.Popen[bytes]:
    def set_death_signal() -> None:
        """Ends the process if the benchmark is killed: stopped ranks would remain forever."""
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, death_signal)

    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=_REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=set_death_signal,
        )
