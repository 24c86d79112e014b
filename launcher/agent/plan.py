"""What a target asks the supervisor to run: processes, and the ranks of each process."""

from dataclasses import dataclass

from launcher.agent.process_spec import ProcessSpec


@dataclass(frozen=True)
class ProcessPlan:
    """One process. `argv` starts an agent, perhaps through ssh; `process` is what the agent runs.

    A `remote` agent reports every second; one that does not counts as a lost host.
    """

    host: str
    ranks: tuple[int, ...]
    argv: tuple[str, ...]
    process: ProcessSpec
    remote: bool = False


@dataclass(frozen=True)
class Plan:
    """All processes of one attempt; `hosts` names the host of every rank."""

    processes: tuple[ProcessPlan, ...]
    hosts: tuple[str, ...]
