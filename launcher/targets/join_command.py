"""The command line of `launcher join` for a job: what makes a container one of the job's."""

import json
from pathlib import Path
from typing import Any

from launcher.spec import Container, JobSpec, Kubernetes, Resources


def join_arguments(spec: JobSpec, role: str, head: str = "head") -> list[str]:
    """For a container with the role `head` or `worker`, or `indexed` where its index decides.

    `head` is the name at which the others find the first one.
    """
    words = ["join", "--job", job_json(spec)]
    if role != "worker":
        words += ["--workers", str(spec.ranks // spec.container.slots - 1)]
    if role != "head":
        words += ["--head", head]
    return [*words, "--", *spec.command]


def job_json(spec: JobSpec) -> str:
    """What the launcher in a container must know of the job, beside its command and its place.

    The container itself has its variables, cores and GPUs already. What is as by default is left
    out.
    """
    box, each, metrics = spec.container, spec.resources, spec.metrics
    if metrics is not None and metrics.port is not None:
        # Prometheus comes from outside the container, over the job's own network.
        metrics = metrics.model_copy(update={"address": "0.0.0.0"})
    inside: dict[str, Any] = {
        "container": Container(slots=box.slots, port=box.port, join_timeout=box.join_timeout),
        "resources": Resources(threads=each.threads or each.cpus, memory=each.memory),
        "metrics": metrics,
        "output": Path(box.output) if box.output != Container().output else Path("runs"),
        "kubernetes": Kubernetes(),
        **{"environment": {}, "pass_environment": (), "hosts": (), "target": None},
    }
    shown = spec.model_copy(update=inside).model_dump(
        mode="json", exclude_defaults=True, exclude={"command", "directory", "ranks"}
    )
    return json.dumps(shown)
