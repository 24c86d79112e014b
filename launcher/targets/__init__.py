"""The places a job can run, one file each behind base.py."""

import importlib

from launcher.errors import MissingToolError
from launcher.targets import engines
from launcher.targets.base import Target

_TARGETS = {
    "local": ("launcher.targets.local", "LocalTarget"),
    "hosts": ("launcher.targets.hosts", "HostsTarget"),
    "compose": ("launcher.targets.compose", "ComposeTarget"),
    "kubernetes": ("launcher.targets.kubernetes.target", "KubernetesTarget"),
}


def load_target(name: str) -> type[Target]:
    """The class of a target, imported only when it is wanted."""
    module, kind = _TARGETS[name]
    return getattr(importlib.import_module(module), kind)


def choose_backend(ranks: int) -> str:
    """The backend for a job that names none: what is installed, Horovod before MPI before tf."""
    if ranks == 1:
        return "local"
    for backend in ("horovod", "mpi", "tf"):
        try:
            engines.require(backend)
        except MissingToolError:
            continue
        return backend
    return "local"
