"""The targets on which a job can run, one module each, with the interface of base.py."""

import importlib

from launcher.errors import UsageError
from launcher.spec import JobSpec
from launcher.spec.targets import TARGETS
from launcher.targets.base import Location, LogQuery, Target

__all__ = ["Location", "LogQuery", "Target", "load_target", "target_for"]


def load_target(name: str | None, where: Location) -> Target:
    """The target of this name, imported on demand; without a name, this machine."""
    name = name or "local"
    if name not in TARGETS:
        raise UsageError(f"--target: expected one of {', '.join(TARGETS)}. Received: {name!r}")
    module, _, kind = TARGETS[name].partition(":")
    target: type[Target] = getattr(importlib.import_module(module), kind)
    return target(where)


def target_for(spec: JobSpec) -> Target:
    """The target of the job: the one it names, else its hosts, or this machine."""
    return load_target(spec.target or ("hosts" if spec.hosts else None), Location.of(spec))
