"""Process specs for the agents, from a job and the slots of its ranks: the same on all targets."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace

from launcher.agent.command import own_agent
from launcher.agent.process_spec import PROCESS_SPEC_VARIABLE, TRANSPORT_RANK, ProcessSpec
from launcher.placement import listening
from launcher.placement.backends import LOOPBACK, mpi_environment, mpirun_command
from launcher.placement.slots import Slot, compute_environment, cores_of_ranks, threads_of
from launcher.spec import JobSpec


def rank_process(
    spec: JobSpec,
    slot: Slot,
    nodes: Sequence[Sequence[int]],
    environment: Mapping[str, str],
    silence: float | None = None,
) -> ProcessSpec:
    """The process of one rank with its own agent.

    `nodes` are the cores of each NUMA node on its host, `environment` the variables of the backend
    and of the supervisor.
    """
    threads = threads_of(spec, sum(map(len, nodes)), slot.local_size)
    return ProcessSpec(
        argv=list(spec.command),
        cwd=str(spec.directory),
        environment={
            **environment,
            **compute_environment(spec, threads, slot.local_rank, os.environ),
            **_metrics_environment(spec),
        },
        rank=slot.rank,
        local_rank=slot.local_rank,
        cpus=cores_of_ranks(spec, slot.local_size, nodes),
        memory=spec.resources.memory,
        grace=spec.grace,
        silence=silence,
    )


def local_mpirun_process(
    spec: JobSpec, nodes: Sequence[Sequence[int]], environment: Mapping[str, str]
) -> ProcessSpec:
    """mpirun for a job whose ranks are all on this machine."""
    # The ranks must not use mpirun's temporary directory, which its agent removes.
    inner = {"TMPDIR": tempfile.gettempdir(), **environment, **listening.rank_environment()}
    mpirun = mpirun_command(spec, [*own_agent(), "--mpi"])
    process = mpirun_process(spec, mpirun, spec.ranks, nodes, inner)
    process.environment.update(listening.mpirun_environment(LOOPBACK))
    return replace(process, shared_memory=True)


def mpirun_process(
    spec: JobSpec,
    mpirun: Sequence[str],
    local_size: int,
    nodes: Sequence[Sequence[int]],
    environment: Mapping[str, str],
    keepalive: Sequence[tuple[str, int]] = (),
) -> ProcessSpec:
    """mpirun as a process, with the spec for the agents below it in its environment.

    `local_size` is the largest number of ranks on a host: every host gets the same variables.
    `keepalive` are the launcher's keepalive servers for agents on other hosts.
    """
    inner = mpi_ranks(spec, local_size, nodes, environment, keepalive)
    return ProcessSpec(
        argv=list(mpirun),
        cwd=str(spec.directory),
        environment={**mpi_environment(), PROCESS_SPEC_VARIABLE: inner.encode()},
        rank=TRANSPORT_RANK,
        grace=spec.grace,
        raw=True,
    )


def mpi_ranks(
    spec: JobSpec,
    local_size: int,
    nodes: Sequence[Sequence[int]],
    environment: Mapping[str, str],
    keepalive: Sequence[tuple[str, int]] = (),
) -> ProcessSpec:
    """The process of every rank that mpirun starts on a host; mpirun decides which is which."""
    threads = threads_of(spec, sum(map(len, nodes)), local_size)
    sized = [compute_environment(spec, threads, rank, os.environ) for rank in range(local_size)]
    return ProcessSpec(
        argv=list(spec.command),
        cwd=str(spec.directory),
        environment={**environment, **_metrics_environment(spec)},
        by_local_rank=sized,
        cpus=cores_of_ranks(spec, local_size, nodes),
        memory=spec.resources.memory,
        grace=max(spec.grace, spec.save_timeout),
        silence=spec.silence_timeout if keepalive else None,
        keepalive=list(keepalive),
    )


def _metrics_environment(spec: JobSpec) -> dict[str, str]:
    """Where ranks serve their metrics: on this port plus their local rank."""
    metrics = spec.metrics
    if metrics is None or metrics.port is None:
        return {}
    base = metrics.port + 1 if metrics.port else 0
    return {"LAUNCHER_METRICS_PORT": str(base), "LAUNCHER_METRICS_HOST": metrics.address}
