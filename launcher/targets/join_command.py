"""The command line of `launcher join` for a job, which every container of it runs."""

import json
from pathlib import Path
from typing import Any

from launcher.spec import Container, JobSpec, Kubernetes, Resources, Slurm


def join_arguments(spec: JobSpec, role: str, head: str = "head") -> list[str]:
    """For a container with the role `head` or `worker`, or `indexed` if its index decides.

    `head` is the host name of the first container.
    """
    words = ["join", "--job", job_json(spec)]
    if role != "worker":
        words += ["--workers", str(spec.ranks // spec.container.slots - 1)]
    if role != "head":
        words += ["--head", head]
    return [*words, "--", *spec.command]


def job_json(spec: JobSpec, shared: Path | None = None) -> str:
    """The fields of the job that the launcher in a container needs, besides command and role.

    The container itself has its variables, cores and GPUs already. Defaults are omitted. `shared`
    is the output directory where it is the same inside and outside.
    """
    box, each, metrics = spec.container, spec.resources, spec.metrics
    if metrics is not None and metrics.port is not None:
        # Prometheus connects from outside the container, over the job's own network.
        metrics = metrics.model_copy(update={"address": "0.0.0.0"})
    inside: dict[str, Any] = {
        "container": Container(slots=box.slots, port=box.port, join_timeout=box.join_timeout),
        "resources": Resources(threads=each.threads or each.cpus, memory=each.memory),
        "metrics": metrics,
        "output": shared
        or (Path(box.output) if box.output != Container().output else Path("runs")),
        "kubernetes": Kubernetes(),
        "slurm": Slurm(),
        **{"environment": {}, "pass_environment": (), "hosts": (), "target": None},
    }
    shown = spec.model_copy(update=inside).model_dump(
        mode="json",
        exclude_defaults=True,
        exclude={"command", "directory", "ranks", "backend_reason"},
    )
    return json.dumps(shown)
