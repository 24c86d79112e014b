"""`launcher join`: the command of each container of a job; together they run its ranks.

launcher join --job '{"backend": "auto"}' --workers 1 -- python train.py     the first container
launcher join --job '{"backend": "auto"}' --head FIRST -- python train.py    every other one
"""

import os
from collections.abc import Callable
from typing import Annotated

import typer

from launcher.cli.run import view_of
from launcher.errors import LauncherError, UsageError
from launcher.placement.backends import choose_backend
from launcher.rendezvous.leader import Leader
from launcher.rendezvous.network import address_to_listen_on
from launcher.rendezvous.registry import Registry
from launcher.rendezvous.worker import Worker
from launcher.spec import JobSpec, build_spec, merge, read_json
from launcher.supervision.run import View, supervise
from launcher.supervision.stop import StopRequests


def command(
    program: Annotated[
        list[str], typer.Argument(metavar="COMMAND", help="The program of a rank, after `--`.")
    ],
    job: Annotated[str, typer.Option(help="The fields of the job, as JSON.")] = "{}",
    workers: Annotated[
        int, typer.Option(min=0, help="Containers besides the first, the leader.")
    ] = 0,
    head: Annotated[
        str | None,
        typer.Option(
            envvar="SLURM_LAUNCH_NODE_IPADDR",
            help="The host name or address of the first container.",
        ),
    ] = None,
    index: Annotated[
        int | None,
        typer.Option(
            min=0,
            envvar=["JOB_COMPLETION_INDEX", "SLURM_PROCID"],
            help="This container's index; 0 is the first. Without it, one with --head gets any.",
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Instead of container.port of the job.")] = None,
    run: Annotated[
        str | None,
        typer.Option(help="The name of the run, which is continued if it exists already."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print failures and the result only.")
    ] = False,
) -> None:
    """Join a job of several containers as one of them, without ssh.

    The first container waits for the others, starts, restarts and ends all ranks together.
    """
    spec = _spec(job, program, workers, port)
    if index not in {None, 0} and head is None:
        raise UsageError("--head: expected the name of the first container")
    stop = StopRequests()
    with stop.listening():
        if head is not None and index != 0:
            raise typer.Exit(Worker(spec, (head, spec.container.port), index).run(stop))
        address = address_to_listen_on(head)
        raise typer.Exit(_lead(spec, workers, address, stop, lambda: view_of(spec, quiet), run))


def _spec(job: str, program: list[str], workers: int, port: int | None) -> JobSpec:
    fields = {"output": os.environ.get("LAUNCHER_OUTPUT", "runs"), **read_json(job)}
    if port is not None:
        fields = merge(fields, {"container": {"port": port}})
    spec = build_spec({**fields, "command": program})
    size = (workers + 1) * spec.container.slots
    if spec.backend == "local" and size > 1:
        raise UsageError("backend: expected mpi, horovod or tf for several ranks. Received: local")
    if spec.backend != "auto":
        return spec.model_copy(update={"ranks": size})
    backend, reason = choose_backend(size)
    return spec.model_copy(update={"ranks": size, "backend": backend, "backend_reason": reason})


def _lead(
    spec: JobSpec,
    workers: int,
    address: str,
    stop: StopRequests,
    view: Callable[[], View],
    run: str | None,
) -> int:
    slots, port = spec.container.slots, spec.container.port
    with Registry(spec.name, workers, slots, port, address) as registry:
        try:
            result = supervise(Leader(spec, registry, stop), stop, view, run)
        except LauncherError as error:
            if stop.count:
                return stop.exit_code
            registry.finish(error.exit_code)  # the others need not wait for a leader
            raise
        if result.outcome != "stopped":  # else a replaced first container may continue the job
            registry.finish(result.exit_code)
    return result.exit_code
