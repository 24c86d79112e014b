"""What a target is: something that can say what it would run, and whether it could.

Rendering is pure: it starts nothing and opens nothing. Targets whose ranks the launcher watches
itself (local, hosts) also open attempts, each a plan of processes for the supervisor; targets that
hand the job to another system (compose, kubernetes) do not.
"""

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from launcher.agent.plan import Plan
from launcher.spec import JobSpec
from launcher.spec.secrets import is_secret


class Target(ABC):
    """A place where jobs run."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec

    @abstractmethod
    def check(self) -> None:
        """Looks, within seconds, whether the job can start here. Raises LauncherError if not."""

    @abstractmethod
    def render(self) -> str:
        """What would be run, as commands or manifests to read or to apply by hand."""


class SupervisedTarget(Target):
    """A target whose ranks are watched by this launcher."""

    @abstractmethod
    def attempt(self, environment: Mapping[str, str]) -> AbstractContextManager[Plan]:
        """Opens what one attempt needs (ports, a rendezvous server) and gives its plan.

        `environment` comes from the supervisor, for every rank. May be called again after the
        context is left. Raises LauncherError when something cannot be opened.
        """


@dataclass(frozen=True)
class Command:
    """One rendered command: the variables that differ from the user's own, then the words."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    comment: str = ""

    def __str__(self) -> str:
        lines = [f"# {self.comment}"] if self.comment else []
        for name, value in sorted(self.environment.items()):
            shown = "(not shown)" if is_secret(name) else value
            lines.append(f"{name}={shlex.quote(shown)} \\")
        lines.append(shlex.join(self.argv))
        return "\n".join(lines)
