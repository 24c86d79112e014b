"""A JobSet: when a pod is lost, its controller creates all pods again."""

from launcher.spec import JobSpec
from launcher.targets.join_command import join_arguments
from launcher.targets.kubernetes.job import CONTAINER, indexed
from launcher.targets.kubernetes.manifests import Manifest, disruption_budget, metadata, suspended
from launcher.targets.kubernetes.pods import container, pod_template

_RANKS = "ranks"


def manifests(spec: JobSpec) -> list[Manifest]:
    arguments = join_arguments(spec, "indexed", f"{spec.name}-{_RANKS}-0-0.{spec.name}")
    pod = pod_template(
        spec, container(spec, CONTAINER, arguments), extra={"restartPolicy": "Never"}
    )
    job_set = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata(spec, queued=True),
        "spec": {
            **suspended(spec),
            **({"managedBy": spec.kubernetes.managed_by} if spec.kubernetes.managed_by else {}),
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "successPolicy": {"operator": "All"},
            "failurePolicy": {
                "maxRestarts": spec.restart.max_restarts,
                "restartStrategy": "Recreate",
                "rules": [
                    {
                        "name": "givenUp",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "ttlSecondsAfterFinished": spec.kubernetes.keep,
            "replicatedJobs": [
                {
                    "name": _RANKS,
                    "replicas": 1,
                    "template": {"spec": {**indexed(spec, CONTAINER, 0), "template": pod}},
                }
            ],
        },
    }
    return [*disruption_budget(spec), job_set]
