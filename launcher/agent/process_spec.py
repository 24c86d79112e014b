"""The process that an agent runs, as JSON: on standard input, or in a variable under mpirun."""

import json
import os
from dataclasses import asdict, dataclass, field, replace

PROCESS_SPEC_VARIABLE = "LAUNCHER_PROCESS_SPEC"

# The rank number of a process that only starts ranks, such as mpirun.
TRANSPORT_RANK = -1


@dataclass(frozen=True)
class ProcessSpec:
    """One process to run and watch.

    `environment` overrides what the agent inherits. `by_local_rank` adds the variables that differ
    between the ranks of one machine, `cpus` binds each rank to cores; both may be empty. `memory`
    is a limit in bytes. With `silence`, an agent that receives nothing from the launcher for that
    many seconds assumes that the launcher has died; under mpirun it connects to the first address
    of `keepalive` (pairs of host and port) that accepts. The output of a `raw` process is forwarded
    unchanged: the agents below it have already framed it. A `daemon` of mpirun is killed in order
    to end it: the agents of its ranks then end these. With `shared_memory`, Open MPI gets its own
    directory in /dev/shm, which is removed at the end.
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
    keepalive: list[tuple[str, int]] = field(default_factory=list)
    raw: bool = False
    daemon: bool = False
    shared_memory: bool = False

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "ProcessSpec":
        return cls(**json.loads(text))

    @classmethod
    def from_mpi(cls) -> "ProcessSpec":
        """The spec of this MPI rank: that of the job, with the ranks that mpirun assigned."""
        return cls.decode(os.environ.pop(PROCESS_SPEC_VARIABLE)).as_mpi_rank()

    def as_mpi_rank(self) -> "ProcessSpec":
        """This spec with the ranks that mpirun has assigned to this process."""
        rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
        return replace(self, rank=rank, local_rank=int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]))
