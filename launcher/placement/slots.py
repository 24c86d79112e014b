"""The slot of each rank, and the cores, threads and GPUs that it may use."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import SpecError
from launcher.spec import Host, JobSpec

_MOST_RANKS_A_CORE = 8  # a typing error, such as 1000 for 10, must not exhaust the machine

# Read by TensorFlow, OpenMP (oneDNN, scikit-learn), OpenBLAS and MKL.
_THREAD_VARIABLES = (
    "TF_NUM_INTRAOP_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)


@dataclass(frozen=True)
class Slot:
    """The host and the ranks of one process, with the names that Horovod's rendezvous expects.

    `cross` counts the hosts that have a rank with the same local rank.
    """

    hostname: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int


def assign_slots(ranks: int, hosts: Sequence[Host]) -> tuple[Slot, ...]:
    """Fills the hosts in order, each up to its slots. The hosts must have room for all ranks."""
    taken: list[tuple[str, int]] = []
    for host in hosts:
        taken += [
            (host.name, local_rank) for local_rank in range(min(host.slots, ranks - len(taken)))
        ]
    slots = []
    for rank, (name, local_rank) in enumerate(taken):
        across = [other for other, local in taken if local == local_rank]
        slots.append(
            Slot(
                hostname=name,
                rank=rank,
                size=len(taken),
                local_rank=local_rank,
                local_size=sum(other == name for other, _ in taken),
                cross_rank=across.index(name),
                cross_size=len(across),
            )
        )
    return tuple(slots)


def require_cores(spec: JobSpec) -> None:
    """Raises SpecError for far more ranks than this machine has cores, without --oversubscribe."""
    cores = sum(map(len, numa_nodes()))
    most = max(16, _MOST_RANKS_A_CORE * cores)
    if spec.ranks > most and not spec.oversubscribe:
        raise SpecError(
            f"ranks: expected at most {most} on this machine ({cores} core{'s' * (cores > 1)}). "
            f"Received: {spec.ranks}. To start them anyway: --oversubscribe"
        )


def threads_of(spec: JobSpec, cores: int, local_size: int) -> int:
    """Threads for one rank: the requested number, else its share of the cores, at least one."""
    asked = spec.resources.threads or spec.resources.cpus
    return asked or max(1, cores // local_size)


def compute_environment(
    spec: JobSpec, threads: int, local_rank: int, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The variables that limit threads and GPUs. What the user sets, here or in the shell, wins."""
    chosen = {name: str(threads) for name in _THREAD_VARIABLES}
    chosen["TF_NUM_INTEROP_THREADS"] = str(min(2, threads))
    chosen["PYTHONUNBUFFERED"] = "1"  # the last lines before a crash must reach the log
    asked = spec.resources.threads or spec.resources.cpus
    environment = {name: value for name, value in chosen.items() if asked or name not in inherited}
    gpus = spec.resources.gpus
    if gpus is None and spec.backend == "tf":
        # MultiWorkerMirrored takes every GPU it sees; Horovod and MPI programs pick by local rank.
        gpus = 1 if _visible_gpus(inherited) else None
    if gpus is not None:
        visible = _visible_gpus(inherited) or [str(index) for index in range(1024)]
        mine = visible[local_rank * gpus : (local_rank + 1) * gpus]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return environment | spec.environment


def cores_of_ranks(
    spec: JobSpec, local_size: int, nodes: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The cores each local rank is bound to; empty for no binding.

    `nodes` holds the usable cores of each NUMA node. By node, consecutive ranks go to the same
    node and share its cores; by cores, each rank gets its own share of all cores.
    """
    binding, cpus = spec.resources.binding, spec.resources.cpus
    if binding == "auto":
        binding = "cores" if cpus else "numa" if len(nodes) > 1 else "none"
    if binding == "none":
        return []
    if binding == "numa":
        return [list(nodes[rank * len(nodes) // local_size]) for rank in range(local_size)]
    cores = [core for node in nodes for core in node]
    share = cpus or len(cores) // local_size
    if share == 0 or share * local_size > len(cores):
        return []  # more ranks than cores: binding two ranks to one core slows them down
    return [cores[rank * share : (rank + 1) * share] for rank in range(local_size)]


def numa_nodes() -> list[list[int]]:
    """The cores this process may use, grouped by NUMA node."""
    usable = os.sched_getaffinity(0)
    nodes = []
    for path in sorted(Path("/sys/devices/system/node").glob("node[0-9]*/cpulist")):
        cores = [core for core in _cpu_list(path.read_text()) if core in usable]
        if cores:
            nodes.append(cores)
    return nodes or [sorted(usable)]


def _cpu_list(text: str) -> list[int]:
    cores: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores += range(int(first), int(last or first) + 1)
    return cores


def _visible_gpus(inherited: Mapping[str, str]) -> list[str]:
    if "CUDA_VISIBLE_DEVICES" in inherited:
        return [gpu for gpu in inherited["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    return [str(index) for index, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
