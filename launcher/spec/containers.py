"""The part of a job for containers: the image and its settings, and more for Kubernetes.

The tables `[container]` and `[kubernetes]` of a job's file. Every name and amount is checked here,
so that nothing invalid is sent to Docker or to a cluster.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from launcher.options import option
from launcher.spec import flag_values
from launcher.spec.fields import Data, Seconds, Text, VariableName, Whole

Kind = Literal["job", "jobset", "mpijob", "trainjob"]

_PANEL = "Containers and Kubernetes"

# Names as the API server accepts them (RFC 1123 labels and subdomains), amounts as quantities:
# https://kubernetes.io/docs/concepts/overview/working-with-objects/names
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Subdomain = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)
]
Quantity = Annotated[
    str, StringConstraints(pattern=r"^(\d+(\.\d*)?|\.\d+)(m|k|Ki|[MGTPE]i?|[eE][+-]?\d+)?$")
]
LabelKey = Annotated[
    str,
    StringConstraints(
        pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
    ),
]
LabelValue = Annotated[
    str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")
]
Image = Annotated[
    str,
    StringConstraints(
        pattern=r"^[a-z0-9]([-a-zA-Z0-9._:/]*[a-zA-Z0-9])?(@sha256:[0-9a-f]{64})?$", max_length=512
    ),
]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^:\s]*$")]


class Container(Data):
    """The containers of the job, all alike.

    `slots` ranks run in each. The first container listens on `port`; `join_timeout` is how long, in
    seconds, a container waits for the others to join or rejoin. `shared_memory` is the size of
    /dev/shm. `output` is where runs are recorded inside the container. The default `image` is built
    from our Dockerfile.
    """

    image: Image | None = option(None, "The image.", _PANEL, shown="that of our Dockerfile")
    slots: Annotated[Whole, Field(ge=1, le=64)] = option(
        1, "Ranks per container, or per node of Slurm.", _PANEL
    )
    port: Annotated[Whole, Field(ge=1024, le=65000)] = 29400
    join_timeout: Annotated[Seconds, Field(gt=0)] = 600.0
    shared_memory: Quantity = "1Gi"
    output: AbsolutePath = "/runs"

    def image_for(self, ssh: bool, gpus: bool) -> str:
        """The image of the job, else that of the matching target of our Dockerfile."""
        return self.image or f"syncbn:{'mpi' if ssh else 'gpu' if gpus else 'cpu'}"


class Toleration(Data):
    """A taint that the job's pods tolerate; without a key, every taint."""

    key: LabelKey | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Toleration":
        if (self.value is not None) != (self.operator == "Equal"):
            raise ValueError('value: goes with operator = "Equal", and only with it')
        if self.key is None and self.operator == "Equal":
            raise ValueError("key: expected one with a value")
        return self


class Volume(Data):
    """A PersistentVolumeClaim at a path in every pod: checkpoints, data."""

    claim: Subdomain
    path: AbsolutePath
    read_only: Annotated[bool, Field(strict=True)] = False


class SecretKey(Data):
    """One value of a Secret."""

    secret: Subdomain
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]{1,253}$")]


class Kubernetes(Data):
    """The settings of a job on a cluster. Times are in seconds.

    `cpu` and `memory` are what each pod requests and may use; by default they follow from the
    resources of a rank. All keys of `secrets` and `config_maps` become environment variables,
    `secret_environment` sets single ones. `queue` lets Kueue admit the job. `time_limit` ends the
    job; `keep` seconds after its end, its objects are deleted. Without `disruption_budget` a node
    may be drained while the job runs. `managed_by` names a controller other than the built-in one.
    """

    kind: Kind = option("job", "job, jobset, mpijob or trainjob.", _PANEL)
    namespace: Label | None = option(None, "Of the cluster.", _PANEL, shown="the context's")
    context: Text | None = option(None, "Of the kubeconfig.", _PANEL, shown="the current one")
    cpu: Quantity | None = None
    memory: Quantity | None = None
    gpu_resource: LabelKey = "nvidia.com/gpu"
    node_selector: dict[LabelKey, LabelValue] = option(
        {},
        "LABEL=VALUE. Repeatable.",
        _PANEL,
        parse=flag_values.labels,
        repeated=True,
        metavar="label",
    )
    tolerations: tuple[Toleration, ...] = ()
    service_account: Subdomain | None = option(None, "The pods' own.", _PANEL)
    pull_secrets: tuple[Subdomain, ...] = option(
        (), "For the image. Repeatable.", _PANEL, "--pull-secret", repeated=True
    )
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    secrets: tuple[Subdomain, ...] = option(
        (),
        "A Secret whose keys become variables. Repeatable.",
        _PANEL,
        "--env-secret",
        repeated=True,
    )
    config_maps: tuple[Subdomain, ...] = ()
    secret_environment: dict[VariableName, SecretKey] = Field(default_factory=dict)
    volumes: tuple[Volume, ...] = option(
        (),
        "CLAIM:/PATH or CLAIM:/PATH:ro. Repeatable.",
        _PANEL,
        "--volume",
        parse=flag_values.volumes,
        repeated=True,
        metavar="volume",
    )
    priority_class: Subdomain | None = option(None, "Of the pods.", _PANEL)
    queue: Label | None = option(None, "The Kueue queue that admits the job.", _PANEL)
    time_limit: Annotated[Whole, Field(ge=1, lt=2**31)] | None = option(
        None, "Seconds the job may take.", _PANEL, shown="no limit"
    )
    keep: Annotated[Whole, Field(ge=0, lt=2**31)] = 86400
    disruption_budget: Annotated[bool, Field(strict=True)] = True
    user: Annotated[Whole, Field(ge=1, lt=2**31)] = 1000
    managed_by: LabelKey | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Kubernetes":
        paths = [volume.path for volume in self.volumes]
        if len(set(paths)) != len(paths):
            raise ValueError("volumes: expected each path once")
        return self
