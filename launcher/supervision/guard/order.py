"""What a guard is told to run, as JSON: on its standard input, or in a variable under mpirun."""

import json
import os
from dataclasses import asdict, dataclass, field

VARIABLE = "LAUNCHER_ORDER"

# The rank number of a process that only carries ranks, such as mpirun.
TRANSPORT_RANK = -1


@dataclass(frozen=True)
class Order:
    """One process to run and watch.

    `environment` is laid over what the guard inherits. `by_local_rank` adds to it what differs
    between the ranks of one machine, `cpus` binds each of them to cores; both may be empty.
    `memory` is a limit in bytes. With `silence` the guard expects a word from the launcher at least
    that often, in seconds, and else takes it for dead; under mpirun the words come from the first
    address of `pulse` (pairs of host and port) that answers. A `raw` order passes the output on
    untouched, for a process whose output is already framed by the guards below it.
    """

    argv: list[str]
    cwd: str
    environment: dict[str, str] = field(default_factory=dict)
    rank: int = 0
    local_rank: int = 0
    by_local_rank: list[dict[str, str]] = field(default_factory=list)
    cpus: list[list[int]] = field(default_factory=list)
    memory: int | None = None
    grace: float = 4.0
    silence: float | None = None
    pulse: list[tuple[str, int]] = field(default_factory=list)
    raw: bool = False

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "Order":
        return cls(**json.loads(text))

    @classmethod
    def from_mpi(cls) -> "Order":
        """The order of this MPI rank: one for the whole job, completed by mpirun's variables."""
        content = json.loads(os.environ.pop(VARIABLE))
        content["rank"] = int(os.environ["OMPI_COMM_WORLD_RANK"])
        content["local_rank"] = int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"])
        return cls(**content)
