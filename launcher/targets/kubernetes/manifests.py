"""What the manifests of all kinds share: names, labels, and the objects besides the job."""

from typing import Any

from launcher.errors import SpecError
from launcher.spec import JobSpec

Manifest = dict[str, Any]

INSTANCE = "app.kubernetes.io/instance"
MANAGED_BY = "app.kubernetes.io/managed-by"
OURS = "launcher"
QUEUE = "kueue.x-k8s.io/queue-name"

# Pod names grow by the kind's own suffixes and must stay DNS labels of 63 characters.
_LONGEST_NAME = 40


def check(spec: JobSpec) -> None:
    """Raises SpecError for what a local job may request but a cluster cannot provide."""
    slots = spec.container.slots
    if len(spec.name) > _LONGEST_NAME or not spec.name[0].isalpha():
        raise SpecError(
            f"name: expected a letter first and at most {_LONGEST_NAME} characters "
            f"on a cluster. Received: {spec.name!r}"
        )
    if spec.ranks % slots:
        raise SpecError(f"ranks: expected a multiple of the {slots} slots. Received: {spec.ranks}")
    if spec.hosts:
        raise SpecError("hosts: a cluster chooses them itself; expected none")
    if spec.pass_environment:
        names = ", ".join(spec.pass_environment)
        raise SpecError(
            f"pass_environment: values of this machine are not sent to a cluster ({names}); put "
            "them into a Secret and name it with --env-secret"
        )
    if spec.backend == "local" and spec.ranks > 1:
        raise SpecError(
            "backend: expected auto, mpi, horovod or tf for several ranks. Received: local"
        )


def pod_count(spec: JobSpec) -> int:
    return spec.ranks // spec.container.slots


def labels(spec: JobSpec) -> dict[str, str]:
    return {"app.kubernetes.io/name": "syncbn", INSTANCE: spec.name, MANAGED_BY: OURS}


def metadata(spec: JobSpec, queued: bool = False) -> Manifest:
    """Name, namespace and labels; `queued` for the one object that Kueue admits."""
    content: Manifest = {"name": spec.name}
    if spec.kubernetes.namespace is not None:
        content["namespace"] = spec.kubernetes.namespace
    content["labels"] = labels(spec)
    if queued and spec.kubernetes.queue is not None:
        content["labels"][QUEUE] = spec.kubernetes.queue
    return content


def suspended(spec: JobSpec) -> Manifest:
    """A queued job is suspended until Kueue admits it."""
    return {"suspend": True} if spec.kubernetes.queue is not None else {}


def headless_service(spec: JobSpec) -> Manifest:
    """Gives every pod a DNS name, even before it is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(spec),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": labels(spec),
            "ports": [{"name": "join", "port": spec.container.port}],
        },
    }


def disruption_budget(spec: JobSpec) -> list[Manifest]:
    """Blocks node drains: the loss of one pod stops them all."""
    if not spec.kubernetes.disruption_budget:
        return []
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(spec),
            # A Job has no scale, so only a number of pods is allowed, no maxUnavailable.
            "spec": {"minAvailable": pod_count(spec), "selector": {"matchLabels": labels(spec)}},
        }
    ]
