"""The kinds of jobs on a cluster, each with its manifests, its resource and its pods."""

from collections.abc import Callable
from dataclasses import dataclass

from launcher.spec import JobSpec
from launcher.targets.kubernetes import job, jobset, mpijob, trainjob
from launcher.targets.kubernetes.manifests import Manifest


@dataclass(frozen=True)
class Resource:
    """One type of object, as the API server's paths name it; `group` is "" for the core."""

    kind: str
    group: str
    version: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


@dataclass(frozen=True)
class JobKind:
    """`pods` is the label of every pod of the job; its value is the job's name.

    `leader` selects the pod whose log has the output of all ranks, `worker` the one with a number.
    `install` is what a cluster needs to support the kind.
    """

    manifests: Callable[[JobSpec], list[Manifest]]
    resource: Resource
    pods: str
    leader: str
    worker: str
    container: str
    install: str = ""


_INDEX = "batch.kubernetes.io/job-completion-index"

KINDS: dict[str, JobKind] = {
    "job": JobKind(
        job.manifests,
        Resource("Job", "batch", "v1", "jobs"),
        pods="batch.kubernetes.io/job-name",
        leader=f"{_INDEX}=0",
        worker=f"{_INDEX}={{}}",
        container=job.CONTAINER,
    ),
    "jobset": JobKind(
        jobset.manifests,
        Resource("JobSet", "jobset.x-k8s.io", "v1alpha2", "jobsets"),
        pods="jobset.sigs.k8s.io/jobset-name",
        leader=f"{_INDEX}=0",
        worker=f"{_INDEX}={{}}",
        container=job.CONTAINER,
        install="the JobSet controller",
    ),
    "mpijob": JobKind(
        mpijob.manifests,
        Resource("MPIJob", "kubeflow.org", "v2beta1", "mpijobs"),
        pods="training.kubeflow.org/job-name",
        leader="training.kubeflow.org/job-role=launcher",
        worker="training.kubeflow.org/job-role=worker,training.kubeflow.org/replica-index={}",
        container=mpijob.CONTAINER,
        install="the MPI operator (v2)",
    ),
    "trainjob": JobKind(
        trainjob.manifests,
        Resource("TrainJob", "trainer.kubeflow.org", "v1alpha1", "trainjobs"),
        pods="jobset.sigs.k8s.io/jobset-name",
        leader=f"{_INDEX}=0",
        worker=f"{_INDEX}={{}}",
        container=trainjob.CONTAINER,
        install="the Kubeflow trainer (v2)",
    ),
}

SERVICE = Resource("Service", "", "v1", "services")
POD = Resource("Pod", "", "v1", "pods")
EVENT = Resource("Event", "", "v1", "events")
BUDGET = Resource("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets")
RUNTIME = Resource("TrainingRuntime", "trainer.kubeflow.org", "v1alpha1", "trainingruntimes")

ACCESS_REVIEW = Resource(
    "SelfSubjectAccessReview",
    "authorization.k8s.io",
    "v1",
    "selfsubjectaccessreviews",
    namespaced=False,
)

_ALL = (*(kind.resource for kind in KINDS.values()), SERVICE, BUDGET, RUNTIME)
RESOURCES = {resource.kind: resource for resource in _ALL}
