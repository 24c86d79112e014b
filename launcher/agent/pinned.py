"""The process of an MPI rank on a machine that runs its own command, whatever mpirun asks for.

mpirun's daemon there calls the agent with a file of that machine (`orte_fork_agent`) instead of the
program that mpirun names. From mpirun come the ranks, and the variables through which they find
each other.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launcher.agent.process_spec import PROCESS_SPEC_VARIABLE, ProcessSpec

# What Open MPI itself sets for a rank. Of its parameters, others could name files.
_OF_MPI = (
    *("OMPI_COMM_WORLD_", "OMPI_UNIVERSE_SIZE", "OMPI_APP_CTX_", "OMPI_FIRST_RANKS"),
    *("OMPI_NUM_APP_CTX", "OMPI_MCA_orte_", "OMPI_MCA_ess", "OMPI_MCA_pmix", "PMIX_"),
)


@dataclass(frozen=True)
class Pinned:
    """What a worker decides about the ranks that mpirun starts on it.

    `accepted` are the variables that the launcher of the first container may set. The value of
    `run_variable` is the directory of that name in `output`. The agent connects to `leader` for the
    keepalive, at the port that the first container names.
    """

    process: ProcessSpec
    accepted: list[str]
    run_variable: str
    output: str
    leader: str

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "Pinned":
        content = json.loads(text)
        return cls(**{**content, "process": ProcessSpec(**content["process"])})


def pinned_process(file: Path) -> ProcessSpec:
    """The process of this rank. Replaces the variables of this agent, which mpirun has set."""
    pinned = Pinned.decode(file.read_text())
    asked = ProcessSpec.decode(os.environ.get(PROCESS_SPEC_VARIABLE, '{"argv": [], "cwd": ""}'))
    variables = {name: text for name, text in asked.environment.items() if name in pinned.accepted}
    if pinned.run_variable in asked.environment:
        name = Path(asked.environment[pinned.run_variable]).name
        variables[pinned.run_variable] = str(Path(pinned.output, name))
    from_mpi = {name: text for name, text in os.environ.items() if name.startswith(_OF_MPI)}
    own = _variables_of(os.getppid())
    os.environ.clear()
    os.environ.update({**own, **from_mpi})
    return replace(
        pinned.process.as_mpi_rank(),
        environment={**variables, **pinned.process.environment},
        keepalive=[(pinned.leader, int(port)) for _, port in asked.keepalive[:1]],
    )


def _variables_of(pid: int) -> dict[str, str]:
    """The variables a process was started with: those of mpirun's daemon are this machine's."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if entry)
    return {name: text for name, _, text in pairs}
