"""The places a job can run, one file each behind base.py."""

import importlib

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
