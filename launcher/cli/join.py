"""`launcher join`: what each container of a job runs; they find each other and train together.

launcher join --backend horovod --workers 1 -- python -m launcher.train     the first container
launcher join --backend horovod --head FIRST -- python -m launcher.train    every other one
"""

from typing import Annotated

import typer

from launcher.cli.job_flags import with_job_flags
from launcher.cli.run import view_of
from launcher.errors import LauncherError, UsageError
from launcher.rendezvous.leader import Leader
from launcher.rendezvous.network import address_to_listen_on
from launcher.rendezvous.registry import Registry
from launcher.rendezvous.worker import Worker
from launcher.spec import JobSpec
from launcher.supervision.run import supervise
from launcher.supervision.stop import StopRequests


def join(
    spec: JobSpec,
    workers: Annotated[
        int, typer.Option(min=0, help="Containers beside the first, which leads them.")
    ] = 0,
    head: Annotated[
        str | None, typer.Option(help="Where the first container is found by the others.")
    ] = None,
    index: Annotated[
        int | None,
        typer.Option(
            min=0,
            envvar="JOB_COMPLETION_INDEX",
            help="This container's place; 0 is the first. Without it, one with --head takes any.",
        ),
    ] = None,
    join_port: Annotated[
        int | None, typer.Option(min=1024, max=65000, help="Of the first container.")
    ] = None,
    join_timeout: Annotated[
        float | None, typer.Option(min=1.0, help="Seconds to wait for the others.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Failures and the end only.")
    ] = False,
) -> None:
    """Take this container's part in a job of several, without ssh.

    The first container waits for the others, leads, restarts all together, and ends them.
    """
    given = {"port": join_port, "join_timeout": join_timeout}
    changes = {name: value for name, value in given.items() if value is not None}
    spec = spec.model_copy(update={"container": spec.container.model_copy(update=changes)})
    size = (workers + 1) * spec.container.slots
    if spec.backend not in {"horovod", "tf"} and size > 1:
        raise UsageError(
            f"--backend: expected horovod or tf between containers. Received: {spec.backend}"
        )
    if index not in {None, 0} and head is None:
        raise UsageError("--head: expected the name of the first container")
    port = spec.container.port
    stop = StopRequests()
    with stop.listening():
        if head is not None and index != 0:
            raise typer.Exit(Worker(spec, (head, port), index).run(stop))
        spec = spec.model_copy(update={"ranks": size})
        here = address_to_listen_on(head)
        with Registry(spec.name, workers, spec.container.slots, port, here) as registry:
            try:
                leader = Leader(spec, registry, stop)
                result = supervise(leader, stop, lambda: view_of(spec, quiet))
            except LauncherError:
                if stop.count:
                    raise typer.Exit(stop.exit_code) from None
                raise
            if result.outcome != "stopped":  # else another first container may take over
                registry.finish(result.exit_code)
    raise typer.Exit(result.exit_code)


command = with_job_flags(join)
