"""What a target asks the supervisor to run: processes, and the ranks each of them carries."""

from dataclasses import dataclass

from launcher.supervision.guard.order import Order


@dataclass(frozen=True)
class ProcessPlan:
    """One process. `argv` starts a guard, perhaps through ssh; `order` is what the guard is told.

    A `remote` guard is heard from all the time, or its host counts as lost.
    """

    host: str
    ranks: tuple[int, ...]
    argv: tuple[str, ...]
    order: Order
    remote: bool = False


@dataclass(frozen=True)
class Plan:
    """All processes of one attempt; `hosts` names the host of every rank."""

    processes: tuple[ProcessPlan, ...]
    hosts: tuple[str, ...]
