"""mpirun's daemon in every container but the first, and the ranks below it."""

import re
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from shutil import which

from launcher.agent.command import own_agent
from launcher.agent.pinned import Pinned
from launcher.agent.process_spec import TRANSPORT_RANK, ProcessSpec
from launcher.placement import listening
from launcher.placement.backends import keepalive_parameters, mpi_environment
from launcher.placement.process_specs import mpi_ranks
from launcher.placement.slots import numa_nodes
from launcher.rendezvous.mpi_leader import network_parameters
from launcher.rendezvous.mpi_shell import PARAMETERS
from launcher.rendezvous.network import interface_of
from launcher.rendezvous.wire import Exchange, WireError
from launcher.runs.processes import RUN_DIRECTORY
from launcher.spec import JobSpec

_NUMBER = re.compile(r"[0-9]{1,10}")
_NODES = re.compile(r"[A-Za-z0-9.,:@()\[\]-]{1,65536}")
_URI = re.compile(r"([0-9]{1,10})\.0;tcp://[0-9.,]+:([0-9]{1,5})")


def daemon_process(
    spec: JobSpec,
    received: Mapping[str, str],
    exchange: Exchange,
    accepted: Collection[str],
    directory: Path,
) -> ProcessSpec:
    """mpirun's daemon, which starts nothing but this container's command.

    `received` are the parameters that mpirun sent, `accepted` the variables that its launcher may
    set; `directory` is for files of this job, readable by nobody else.

    Raises:
        WireError: A parameter is missing, or not of its kind.
    """
    python = Path(sys.executable)
    found = which("orted", path=str(python.parent)) or which("orted")
    if found is None:
        raise WireError("orted is not installed; pip install 'syncbn[mpi]'")
    network = network_parameters(interface_of(exchange.own_address))
    parameters = {
        "ess": "env",
        **_checked(received, exchange.head_address),
        # The daemon starts no others, but does not start itself unless this program exists.
        "plm": "rsh",
        "plm_rsh_agent": sys.executable,
        "orte_leave_session_attached": "1",
        # When mpirun itself aborts a job, the agents end their ranks first, within two seconds.
        "odls_base_sigkill_timeout": "3",
        "orte_fork_agent": f"/bin/sh {_rank_script(spec, exchange, accepted, network, directory)}",
        **keepalive_parameters(spec),
    }
    own = Path(found).parent == python.parent
    prefix = {"OPAL_PREFIX": str(python.parent.parent)} if own else {}
    return ProcessSpec(
        argv=[found, *(word for item in parameters.items() for word in ("-mca", *item))],
        cwd=str(spec.directory),
        environment={
            **mpi_environment(),
            **network,
            **prefix,
            **listening.mpirun_environment(exchange.own_address),
        },
        rank=TRANSPORT_RANK,
        grace=max(spec.grace, spec.save_timeout),
        raw=True,
        daemon=True,
        shared_memory=True,
    )


def _rank_script(
    spec: JobSpec,
    exchange: Exchange,
    accepted: Collection[str],
    network: Mapping[str, str],
    directory: Path,
) -> Path:
    """A script that starts the agent of one rank. Its file system may forbid running it."""
    inner = {**network, **listening.rank_environment()}
    process = mpi_ranks(spec, spec.container.slots, numa_nodes(), inner)
    leader = exchange.head_address
    output = str(spec.output.absolute())
    pinned = Pinned(process, sorted(accepted), RUN_DIRECTORY, output, leader)
    file, script = directory / "ranks.json", directory / "rank"
    file.write_text(pinned.encode())
    script.write_text(f"exec {shlex.join([*own_agent(), '--pinned', str(file)])}\n")
    return script


def _checked(received: Mapping[str, str], leader: str) -> dict[str, str]:
    kinds = {name: _NODES if name == "orte_node_regex" else _NUMBER for name in PARAMETERS}
    kinds["orte_hnp_uri"] = _URI
    for name, kind in kinds.items():
        if kind.fullmatch(str(received.get(name, ""))) is None:
            raise WireError(f"expected {name} of mpirun's daemon. Received: {received.get(name)!r}")
    checked = {name: str(received[name]) for name in PARAMETERS}
    uri = _URI.fullmatch(checked["orte_hnp_uri"])
    assert uri is not None
    return checked | {"orte_hnp_uri": f"{uri[1]}.0;tcp://{leader}:{uri[2]}"}
