"""Starts the ranks of one job: by `mpirun`, `horovodrun`, over Gloo, as a TF_CONFIG cluster."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from launcher.spec import Host
from launcher.targets import engines
from launcher.targets.placement import place

_REPOSITORY = Path(__file__).resolve().parents[2]
_SCRIPTS = Path(sys.executable).parent
# What the ranks must not inherit from a job around the benchmark.
_RANK_VARIABLES = ("TF_CONFIG", "HOROVOD_", "OMPI_", "PMI_", "PMIX_", "LAUNCHER_")
_THREADS = (
    "TF_NUM_INTRAOP_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)

Road = Callable[[list[str], int, dict[str, str], Path, ExitStack], list[subprocess.Popen[bytes]]]


def start(
    road: str,
    command: list[str],
    ranks: int,
    environment: Mapping[str, str],
    log: Path,
    resources: ExitStack,
    device: str = "cpu",
) -> list[subprocess.Popen[bytes]]:
    """Starts `command` on every rank.

    Args:
        road: One of ROADS.
        command: Of one rank.
        ranks: How many.
        environment: For every rank, beside what one intra-op thread and a quiet start need.
        log: Takes all output.
        resources: Closes what must stay open as long as the job (ports, a rendezvous).
        device: `"cpu"` hides the GPUs.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_RANK_VARIABLES)}
    settled = inherited | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    settled |= dict.fromkeys(_THREADS, "1") | engines.mpi_environment()
    settled["PATH"] = f"{_SCRIPTS}{os.pathsep}{inherited.get('PATH', os.defpath)}"
    modules = [str(_REPOSITORY), inherited.get("PYTHONPATH", "")]
    settled["PYTHONPATH"] = os.pathsep.join(filter(None, modules))
    if device == "cpu":
        settled["CUDA_VISIBLE_DEVICES"] = ""
    return ROADS[road](command, ranks, settled | dict(environment), log, resources)


def _mpirun(
    command: list[str], ranks: int, environment: dict[str, str], log: Path, _: ExitStack
) -> list[subprocess.Popen[bytes]]:
    mpirun = [engines.find_mpirun() or "mpirun", "-np", str(ranks)]
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
    seats = place(ranks, [Host(name="localhost", slots=ranks)])
    port = resources.enter_context(engines.rendezvous(seats, engines.LOOPBACK, 0))
    return [
        _spawn(
            command,
            environment | engines.gloo_environment(seat, engines.LOOPBACK, port, "lo"),
            log,
            signal.SIGKILL,
        )
        for seat in seats
    ]


def _cluster(
    command: list[str], ranks: int, environment: dict[str, str], log: Path, resources: ExitStack
) -> list[subprocess.Popen[bytes]]:
    ports = resources.enter_context(engines.held_ports(ranks))
    workers = [f"{engines.LOOPBACK}:{port}" for port in ports]
    return [
        _spawn(command, environment | engines.tf_environment(rank, workers), log, signal.SIGKILL)
        for rank in range(ranks)
    ]


def _alone(
    command: list[str], ranks: int, environment: dict[str, str], log: Path, _: ExitStack
) -> list[subprocess.Popen[bytes]]:
    if ranks != 1:
        raise ValueError(f"one process alone has one rank. Received: ranks={ranks}")
    return [_spawn(command, environment, log, signal.SIGKILL)]


ROADS: dict[str, Road] = {
    "mpirun": _mpirun,
    "horovodrun": _horovodrun,
    "gloo": _gloo,
    "cluster": _cluster,
    "alone": _alone,
}


def _spawn(
    command: list[str], environment: dict[str, str], log: Path, farewell: int
) -> subprocess.Popen[bytes]:
    def end_with_us() -> None:
        """Should the benchmark be killed: no rank may stay behind, least of all a frozen one."""
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, farewell)

    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=_REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_us,
        )
