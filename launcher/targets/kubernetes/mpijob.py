"""An MPIJob of the MPI operator: a launcher pod that connects to the workers over ssh.

The workers run the image's `mpi` target, an ssh server without root; the launcher pod runs
`launcher run` with the operator's host file, so that supervision is the same as on hosts.
"""

from launcher.errors import SpecError
from launcher.spec import JobSpec
from launcher.targets.join_command import job_json
from launcher.targets.kubernetes.manifests import (
    Manifest,
    disruption_budget,
    metadata,
    pod_count,
    suspended,
)
from launcher.targets.kubernetes.pods import container, pod_template

CONTAINER = "trainer"
_HOME = "/home/trainer"
_USER = 1000
_SSH_PORT = 2222


def manifests(spec: JobSpec) -> list[Manifest]:
    settings = spec.kubernetes
    if settings.user != _USER:
        raise SpecError(
            f"kubernetes.user: expected {_USER}, the user of the image's ssh server. "
            f"Received: {settings.user}"
        )
    policy: Manifest = {
        **suspended(spec),
        **({"managedBy": settings.managed_by} if settings.managed_by else {}),
        "cleanPodPolicy": "Running",
        "backoffLimit": spec.restart.max_restarts,
        "ttlSecondsAfterFinished": settings.keep,
    }
    if settings.time_limit is not None:
        policy["activeDeadlineSeconds"] = settings.time_limit
    mpi_job = {
        "apiVersion": "kubeflow.org/v2beta1",
        "kind": "MPIJob",
        "metadata": metadata(spec, queued=True),
        "spec": {
            "mpiImplementation": "OpenMPI",
            "slotsPerWorker": spec.container.slots,
            "launcherCreationPolicy": "WaitForWorkersReady",
            "runLauncherAsWorker": False,
            "sshAuthMountPath": f"{_HOME}/.ssh",
            "runPolicy": policy,
            "mpiReplicaSpecs": {
                "Launcher": {
                    "replicas": 1,
                    "restartPolicy": "OnFailure",
                    "template": pod_template(spec, _launcher(spec)),
                },
                "Worker": {
                    "replicas": pod_count(spec),
                    "restartPolicy": "OnFailure",
                    "template": pod_template(spec, _worker(spec)),
                },
            },
        },
    }
    return [*disruption_budget(spec), mpi_job]


def _launcher(spec: JobSpec) -> Manifest:
    words = ["run", "--job", job_json(spec), "-np", str(spec.ranks)]
    words += ["--hostfile", "/etc/mpi/hostfile"]
    names = {*spec.environment, *spec.kubernetes.secret_environment}
    for name in sorted(names):
        words += ["--env", name]  # by name only: values must not appear on a command line
    content = container(spec, CONTAINER, [*words, "--", *spec.command])
    content["resources"] = {
        "requests": {"cpu": "500m", "memory": "512Mi"},
        "limits": {"cpu": "1", "memory": "1Gi"},
    }
    content.pop("ports", None)
    return content


def _worker(spec: JobSpec) -> Manifest:
    content = container(spec, CONTAINER, [])
    content.pop("args")
    content["command"] = ["serve-ssh"]
    content["readinessProbe"] = {"tcpSocket": {"port": _SSH_PORT}, "periodSeconds": 2}
    return content
