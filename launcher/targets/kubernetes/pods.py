"""The pod that runs ranks: restricted by default, with what the job requests."""

from collections.abc import Sequence

from launcher.spec import JobSpec
from launcher.targets.kubernetes.manifests import Manifest, labels

_LEAVING_SECONDS = 15  # for the launcher itself, after the ranks have saved
_OWN_MEMORY = 512  # mebibytes for the launcher, so that a rank reaches its own limit first
_MI = 1 << 20


def pod_template(
    spec: JobSpec, container: Manifest, subdomain: str | None = None, extra: Manifest | None = None
) -> Manifest:
    """The template around one container; `extra` are further fields of the pod."""
    settings = spec.kubernetes
    pod: Manifest = {
        **({"subdomain": subdomain} if subdomain else {}),
        **(extra or {}),
        "terminationGracePeriodSeconds": int(spec.save_timeout + spec.grace) + _LEAVING_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.user,
            "runAsGroup": settings.user,
            "fsGroup": settings.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": _volumes(spec),
    }
    if settings.service_account:
        pod["serviceAccountName"] = settings.service_account
    if settings.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        pod["tolerations"] = [one.model_dump(exclude_none=True) for one in settings.tolerations]
    if settings.priority_class:
        pod["priorityClassName"] = settings.priority_class
    metadata: Manifest = {"labels": labels(spec)}
    if ports := _metrics_ports(spec):
        # One address per pod: that of its first rank, which every pod has.
        metadata["annotations"] = {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(ports[1]["containerPort"]),
            "prometheus.io/path": "/metrics",
        }
    return {"metadata": metadata, "spec": pod}


def container(spec: JobSpec, name: str, arguments: Sequence[str]) -> Manifest:
    """The container that runs `python -m launcher ARGUMENTS`, the image's entry point."""
    settings = spec.kubernetes
    image = spec.container.image_for(settings.kind == "mpijob", bool(spec.resources.gpus))
    content: Manifest = {"name": name, "image": image}
    if settings.pull_policy:
        content["imagePullPolicy"] = settings.pull_policy
    content["args"] = list(arguments)
    if variables := environment(spec):
        content["env"] = variables
    sources: list[Manifest] = [{"secretRef": {"name": one}} for one in settings.secrets]
    sources += [{"configMapRef": {"name": one}} for one in settings.config_maps]
    if sources:
        content["envFrom"] = sources
    if ports := _metrics_ports(spec):
        content["ports"] = ports
    if amounts := resources(spec):
        content["resources"] = amounts
    content["livenessProbe"] = {
        "exec": {"command": ["launcher", "health"]},
        "initialDelaySeconds": 60,
        "periodSeconds": 60,
        "timeoutSeconds": 15,
        "failureThreshold": 3,
    }
    # The last lines of a failed pod stay in its status, even when its log is deleted.
    content["terminationMessagePolicy"] = "FallbackToLogsOnError"
    content["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    content["volumeMounts"] = _mounts(spec)
    return content


def environment(spec: JobSpec) -> list[Manifest]:
    """The job's variables, with references to the values of Secrets."""
    variables: list[Manifest] = [
        {"name": name, "value": value} for name, value in sorted(spec.environment.items())
    ]
    for name, value in sorted(spec.kubernetes.secret_environment.items()):
        source = {"secretKeyRef": {"name": value.secret, "key": value.key}}
        variables.append({"name": name, "valueFrom": source})
    return variables


def resources(spec: JobSpec) -> Manifest:
    """Requests equal to limits: one throttled rank would slow down all others."""
    each, slots, settings = spec.resources, spec.container.slots, spec.kubernetes
    amounts: dict[str, str] = {}
    if settings.cpu or each.cpus:
        amounts["cpu"] = settings.cpu or str((each.cpus or 0) * slots)
    if settings.memory or each.memory:
        amounts["memory"] = (
            settings.memory or f"{(each.memory or 0) * slots // _MI + _OWN_MEMORY}Mi"
        )
    if each.gpus:
        amounts[settings.gpu_resource] = str(each.gpus * slots)
    return {"requests": amounts, "limits": dict(amounts)} if amounts else {}


def _metrics_ports(spec: JobSpec) -> list[Manifest]:
    """`job-metrics`, which only the leading pod serves, and `rank-metrics` for each local rank."""
    if spec.metrics is None or spec.metrics.port is None:
        return []
    names = ["job-metrics", "rank-metrics"]
    names += [f"rank-metrics-{rank}" for rank in range(1, spec.container.slots)]
    return [
        {"name": name, "containerPort": spec.metrics.port + number}
        for number, name in enumerate(names)
    ]


def _volumes(spec: JobSpec) -> list[Manifest]:
    size = spec.container.shared_memory
    volumes: list[Manifest] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": size}},
    ]
    if spec.container.output not in {volume.path for volume in spec.kubernetes.volumes}:
        volumes.append({"name": "runs", "emptyDir": {}})
    for number, volume in enumerate(spec.kubernetes.volumes):
        claim: Manifest = {"claimName": volume.claim}
        if volume.read_only:
            claim["readOnly"] = True
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": claim})
    return volumes


def _mounts(spec: JobSpec) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    if spec.container.output not in {volume.path for volume in spec.kubernetes.volumes}:
        mounts.append({"name": "runs", "mountPath": spec.container.output})
    for number, volume in enumerate(spec.kubernetes.volumes):
        mount: Manifest = {"name": f"claim-{number}", "mountPath": volume.path}
        if volume.read_only:
            mount["readOnly"] = True
        mounts.append(mount)
    return mounts
