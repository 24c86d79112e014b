"""The places where a job can run, one module each behind base.py."""

import importlib

from launcher.errors import UsageError
from launcher.spec import JobSpec
from launcher.spec.targets import TARGETS
from launcher.targets.base import Location, LogQuery, Target

__all__ = ["Location", "LogQuery", "Target", "load_target", "target_for"]


def load_target(name: str | None, where: Location) -> Target:
    """The target of this name, imported only when it is wanted; without a name, this machine."""
    name = name or "local"
    if name not in TARGETS:
        raise UsageError(f"--target: expected one of {', '.join(TARGETS)}. Received: {name!r}")
    module, _, kind = TARGETS[name].partition(":")
    target: type[Target] = getattr(importlib.import_module(module), kind)
    return target(where)


def target_for(spec: JobSpec) -> Target:
    """Where the job runs: what it names, else its hosts, or this machine."""
    return load_target(spec.target or ("hosts" if spec.hosts else None), Location.of(spec))
