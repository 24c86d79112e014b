"""An Indexed Job with a headless Service: no operator, no ssh. The pod of index 0 leads.

The supervisor restarts the ranks of all pods together; the Job only replaces lost pods.
"""

from launcher.spec import JobSpec
from launcher.targets.join_command import join_arguments
from launcher.targets.kubernetes.manifests import (
    Manifest,
    disruption_budget,
    headless_service,
    metadata,
    pod_count,
    suspended,
)
from launcher.targets.kubernetes.pods import container, pod_template

CONTAINER = "trainer"


def manifests(spec: JobSpec) -> list[Manifest]:
    arguments = join_arguments(spec, "indexed", f"{spec.name}-0.{spec.name}")
    pod = pod_template(
        spec,
        container(spec, CONTAINER, arguments),
        subdomain=spec.name,
        extra={"restartPolicy": "Never"},
    )
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(spec, queued=True),
        "spec": {
            **suspended(spec),
            **({"managedBy": spec.kubernetes.managed_by} if spec.kubernetes.managed_by else {}),
            **indexed(spec, CONTAINER, spec.restart.max_restarts),
            "ttlSecondsAfterFinished": spec.kubernetes.keep,
            "template": pod,
        },
    }
    return [headless_service(spec), *disruption_budget(spec), job]


def indexed(spec: JobSpec, container_name: str, lost_pods: int) -> Manifest:
    """The fields of a Job whose pods are numbered, that tolerates the loss of `lost_pods` pods."""
    pods = pod_count(spec)
    fields: Manifest = {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "backoffLimit": lost_pods,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [_DISRUPTED]},
                # The supervisor has given up (1), or a retry would fail too (2).
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": container_name,
                        "operator": "In",
                        "values": [1, 2],
                    },
                },
            ]
        },
    }
    if spec.kubernetes.time_limit is not None:
        fields["activeDeadlineSeconds"] = spec.kubernetes.time_limit
    return fields


_DISRUPTED = {"type": "DisruptionTarget", "status": "True"}
