"""From a job and the seats of its ranks to the orders of the guards, the same on every machine."""

import os
from collections.abc import Mapping, Sequence

from launcher.spec import JobSpec
from launcher.supervision.guard.order import TRANSPORT_RANK, Order
from launcher.supervision.guard.order import VARIABLE as ORDER_VARIABLE
from launcher.targets.engines import mpi_environment
from launcher.targets.placement import Place, compute_environment, cores_of_ranks, threads_of


def rank_order(
    spec: JobSpec,
    seat: Place,
    nodes: Sequence[Sequence[int]],
    environment: Mapping[str, str],
    silence: float | None = None,
) -> Order:
    """The order for one rank with a guard of its own. `nodes`: the cores of each NUMA node there;
    `environment`: the engine's variables and the supervisor's."""
    threads = threads_of(spec, sum(map(len, nodes)), seat.local_size)
    return Order(
        argv=list(spec.command),
        cwd=str(spec.directory),
        environment={
            **environment,
            **compute_environment(spec, threads, seat.local_rank, os.environ),
            **_metrics_environment(spec),
        },
        rank=seat.rank,
        local_rank=seat.local_rank,
        cpus=cores_of_ranks(spec, seat.local_size, nodes),
        memory=spec.resources.memory,
        grace=spec.grace,
        silence=silence,
    )


def mpirun_order(
    spec: JobSpec,
    mpirun: Sequence[str],
    local_size: int,
    nodes: Sequence[Sequence[int]],
    environment: Mapping[str, str],
    pulse: Sequence[tuple[str, int]] = (),
) -> Order:
    """The order for mpirun, with the order for the guards below it in its environment.

    `local_size` is the most ranks a host carries: every host gets the same sizes. `pulse` is where
    guards on other hosts hear the launcher.
    """
    threads = threads_of(spec, sum(map(len, nodes)), local_size)
    sized = [compute_environment(spec, threads, rank, os.environ) for rank in range(local_size)]
    inner = Order(
        argv=list(spec.command),
        cwd=str(spec.directory),
        environment={**environment, **_metrics_environment(spec)},
        by_local_rank=sized,
        cpus=cores_of_ranks(spec, local_size, nodes),
        memory=spec.resources.memory,
        grace=max(spec.grace, spec.save_timeout),
        silence=spec.silence_timeout if pulse else None,
        pulse=list(pulse),
    )
    return Order(
        argv=list(mpirun),
        cwd=str(spec.directory),
        environment={**mpi_environment(), ORDER_VARIABLE: inner.encode()},
        rank=TRANSPORT_RANK,
        grace=spec.grace,
        raw=True,
    )


def _metrics_environment(spec: JobSpec) -> dict[str, str]:
    """Where ranks serve their metrics: on this port plus their local rank."""
    metrics = spec.metrics
    if metrics is None or metrics.port is None:
        return {}
    base = metrics.port + 1 if metrics.port else 0
    return {"LAUNCHER_METRICS_PORT": str(base), "LAUNCHER_METRICS_HOST": metrics.address}
