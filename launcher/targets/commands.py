"""What `launcher render` prints for a supervised job: commands with their environment."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.agent.command import own_agent
from launcher.agent.plan import Plan
from launcher.agent.process_spec import PROCESS_SPEC_VARIABLE, ProcessSpec
from launcher.placement.slots import Slot
from launcher.spec.secrets import is_secret


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


def render_processes(head: str, plan: Plan, slots: Sequence[Slot]) -> str:
    """The commands of a plan without the agents, as one would type them."""
    commands = []
    for process in (planned.process for planned in plan.processes):
        if process.raw:
            inner = ProcessSpec.decode(process.environment[PROCESS_SPEC_VARIABLE])
            argv = [*_without_agent(process.argv), *inner.argv]
            environment = inner.environment | inner.by_local_rank[0]
            commands.append(Command(tuple(argv), environment, f"{len(slots)} ranks"))
        else:
            comment = f"rank {process.rank} on {slots[process.rank].hostname}"
            commands.append(Command(tuple(process.argv), process.environment, comment))
    return "\n\n".join([head, *map(str, commands)])


def _without_agent(mpirun: Sequence[str]) -> Sequence[str]:
    end = len(mpirun) - len(own_agent()) - 1
    words = list(mpirun[:end])
    exported = words.index(PROCESS_SPEC_VARIABLE)
    return words[: exported - 1] + words[exported + 1 :]
