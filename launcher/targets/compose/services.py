"""A job as the content of a Compose file."""

from typing import Any

from launcher.errors import SpecError
from launcher.spec import JobSpec
from launcher.targets.compose.containers import JOB
from launcher.targets.join_command import join_arguments

LEADER = "head"
_WORKER = "worker"
_LEAVING_SECONDS = 15


def check(spec: JobSpec) -> None:
    """Raises SpecError for what a local job may request but containers cannot provide."""
    slots = spec.container.slots
    if spec.ranks % slots:
        raise SpecError(f"ranks: expected a multiple of the {slots} slots: {spec.ranks}")
    if spec.backend == "local" and spec.ranks > 1:
        raise SpecError(
            "backend: expected auto, mpi, horovod or tf for several ranks. Received: local"
        )


def image(spec: JobSpec) -> str:
    return spec.container.image_for(ssh=False, gpus=bool(spec.resources.gpus))


def compose_file(spec: JobSpec) -> dict[str, Any]:
    """Raises SpecError."""
    check(spec)
    workers = spec.ranks // spec.container.slots - 1
    services = {LEADER: _service(spec, "head")}
    if workers:
        services[_WORKER] = {**_service(spec, "worker"), "scale": workers}
    networks = {"job": {"internal": True}}
    return {"services": services, "networks": networks, "volumes": {"runs": {}}}


def _service(spec: JobSpec, role: str) -> dict[str, Any]:
    service: dict[str, Any] = {
        "image": image(spec),
        "command": [_literal(word) for word in join_arguments(spec, role)],
        "labels": {JOB: spec.name},
        "networks": ["job"],
        "volumes": [f"runs:{spec.container.output}"],
        "tmpfs": ["/tmp"],
        "shm_size": _docker_size(spec.container.shared_memory),
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "stop_grace_period": f"{int(spec.save_timeout + spec.grace) + _LEAVING_SECONDS}s",
    }
    variables = {name: _literal(value) for name, value in sorted(spec.environment.items())}
    # Without a value, Compose takes it from the caller's environment; it is not recorded.
    names = [*(f"{name}={value}" for name, value in variables.items()), *spec.pass_environment]
    if names:
        service["environment"] = names
    if spec.resources.memory:
        service["mem_limit"] = spec.resources.memory * spec.container.slots
    if spec.resources.cpus:
        service["cpus"] = spec.resources.cpus * spec.container.slots
    if spec.resources.gpus:
        count = spec.resources.gpus * spec.container.slots
        device = {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _literal(text: str) -> str:
    return text.replace("$", "$$")


def _docker_size(quantity: str) -> str:
    """A Kubernetes quantity in Docker's notation, whose units are powers of two."""
    return quantity.removesuffix("i").lower() if quantity.endswith("i") else quantity.lower()
