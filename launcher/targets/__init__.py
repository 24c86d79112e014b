"""The places where a job can run, one file each behind base.py."""

import importlib

from launcher.errors import SpecError
from launcher.spec import JobSpec
from launcher.targets.base import Location, LogQuery, Target

__all__ = ["TARGETS", "Location", "LogQuery", "Target", "load_target", "target_for"]

# A new target is a file, and a line here.
TARGETS = {
    "local": "launcher.targets.local:LocalTarget",
    "hosts": "launcher.targets.hosts:HostsTarget",
    "compose": "launcher.targets.compose.target:ComposeTarget",
    "kubernetes": "launcher.targets.kubernetes.target:KubernetesTarget",
}


def load_target(name: str | None, where: Location) -> Target:
    """The target of this name, imported only when it is wanted; without a name, this machine."""
    try:
        module, _, kind = TARGETS[name or "local"].partition(":")
    except KeyError:
        known = ", ".join(TARGETS)
        raise SpecError(f"target: expected one of {known}. Received: {name!r}") from None
    target: type[Target] = getattr(importlib.import_module(module), kind)
    return target(where)


def target_for(spec: JobSpec) -> Target:
    """Where the job runs: what it names, else its hosts, or this machine."""
    return load_target(spec.target or ("hosts" if spec.hosts else None), Location.of(spec))
