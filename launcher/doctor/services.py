"""Services that only some jobs need: Docker Engine, and a Kubernetes cluster."""

import shutil
import subprocess
from collections.abc import Iterator

from launcher.doctor.finding import Finding

_SECONDS = 10


def check_docker() -> Iterator[Finding]:
    """Whether Docker Engine answers; at worst a warning, since most jobs do not need it."""
    if shutil.which("docker") is None:
        yield Finding("docker", "warning", "not installed", "apt-get install docker.io")
        return
    version = _answer(["docker", "version", "--format", "{{.Server.Version}}"])
    if version is None:
        text = "Docker Engine does not answer"
        yield Finding("docker", "warning", text, "systemctl start docker")
    else:
        yield Finding("docker", "ok", f"Docker Engine {version}")


def check_kubernetes() -> Iterator[Finding]:
    """kubectl, and the cluster of its current context."""
    if shutil.which("kubectl") is None:
        fix = "install kubectl: https://kubernetes.io/docs/tasks/tools/"
        yield Finding("kubernetes", "warning", "no kubectl", fix)
        return
    context = _answer(["kubectl", "config", "current-context"])
    if context is None:
        text = "kubectl has no current context"
        yield Finding("kubernetes", "warning", text, "kubectl config use-context NAME")
        return
    reached = _answer(["kubectl", "version", f"--request-timeout={_SECONDS - 2}s"])
    if reached is None:
        text = f"the cluster of context {context} does not answer"
        yield Finding("kubernetes", "warning", text, "kubectl cluster-info")
    else:
        yield Finding("kubernetes", "ok", f"context {context}")


def _answer(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None
