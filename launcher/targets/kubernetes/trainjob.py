"""A TrainJob of the Kubeflow trainer, with its own TrainingRuntime.

The runtime describes the pods, the TrainJob what they run.
"""

from launcher.errors import SpecError
from launcher.spec import JobSpec
from launcher.targets.join_command import join_arguments
from launcher.targets.kubernetes.job import indexed
from launcher.targets.kubernetes.manifests import (
    Manifest,
    disruption_budget,
    metadata,
    pod_count,
    suspended,
)
from launcher.targets.kubernetes.pods import container, pod_template, resources

# The Kubeflow trainer sets image, arguments and resources of the container with this name.
CONTAINER = "node"
_API = "trainer.kubeflow.org/v1alpha1"
_CONTROLLERS = ("trainer.kubeflow.org/trainjob-controller", "kueue.x-k8s.io/multikueue")


def manifests(spec: JobSpec) -> list[Manifest]:
    settings = spec.kubernetes
    if settings.managed_by is not None and settings.managed_by not in _CONTROLLERS:
        raise SpecError(
            f"kubernetes.managed_by: expected {' or '.join(_CONTROLLERS)} for a trainjob. "
            f"Received: {settings.managed_by!r}"
        )
    arguments = join_arguments(spec, "indexed", f"{spec.name}-{CONTAINER}-0-0.{spec.name}")
    node = container(spec, CONTAINER, arguments)
    trainer: Manifest = {
        "image": node["image"],
        "numNodes": pod_count(spec),
        "args": node.pop("args"),
    }
    if amounts := resources(spec):
        trainer["resourcesPerNode"] = amounts
    train_job: Manifest = {
        "apiVersion": _API,
        "kind": "TrainJob",
        "metadata": metadata(spec, queued=True),
        "spec": {
            **suspended(spec),
            **({"managedBy": settings.managed_by} if settings.managed_by else {}),
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": spec.name,
            },
            "trainer": trainer,
        },
    }
    if settings.time_limit is not None:
        train_job["spec"]["activeDeadlineSeconds"] = settings.time_limit
    return [*disruption_budget(spec), _runtime(spec, node), train_job]


def _runtime(spec: JobSpec, node: Manifest) -> Manifest:
    job = indexed(spec, CONTAINER, 0)
    job.pop("activeDeadlineSeconds", None)
    return {
        "apiVersion": _API,
        "kind": "TrainingRuntime",
        "metadata": metadata(spec),
        "spec": {
            "mlPolicy": {"numNodes": pod_count(spec)},
            "template": {
                "spec": {
                    "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
                    "successPolicy": {"operator": "All"},
                    "failurePolicy": {
                        "maxRestarts": spec.restart.max_restarts,
                        "restartStrategy": "Recreate",
                    },
                    "replicatedJobs": [
                        {
                            "name": CONTAINER,
                            "replicas": 1,
                            "template": {
                                "metadata": {
                                    "labels": {
                                        "trainer.kubeflow.org/trainjob-ancestor-step": "trainer"
                                    }
                                },
                                "spec": {
                                    **job,
                                    "template": pod_template(
                                        spec, node, extra={"restartPolicy": "Never"}
                                    ),
                                },
                            },
                        }
                    ],
                }
            },
        },
    }
