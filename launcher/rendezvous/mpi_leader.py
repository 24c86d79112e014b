"""mpirun in the first container: its daemons in the others are started by `mpi_shell.py`."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import launcher.rendezvous.mpi_shell
from launcher.agent.command import own_agent
from launcher.agent.plan import ProcessPlan
from launcher.placement import listening
from launcher.placement.backends import mpirun_command
from launcher.placement.process_specs import mpirun_process
from launcher.placement.slots import numa_nodes
from launcher.rendezvous.mpi_shell import WORKERS_VARIABLE
from launcher.rendezvous.network import interface_of
from launcher.rendezvous.registry import Worker
from launcher.spec import JobSpec

_SHELL = (sys.executable, "-I", "-S", str(Path(launcher.rendezvous.mpi_shell.__file__)))


def mpirun_plan(
    spec: JobSpec,
    workers: Sequence[Worker],
    address: str,
    keepalive_port: int,
    environment: Mapping[str, str],
) -> ProcessPlan:
    """mpirun on `address`, with all ranks of the job below it."""
    slots = spec.container.slots
    # Names that mean nothing to a name server: mpirun passes them to the shell only.
    nodes = {f"worker-{one.index}": (one.address, one.port) for one in workers}
    hosts = [f"{name}:{slots}" for name in ("localhost", *nodes)]
    command = mpirun_command(spec, [*own_agent(), "--mpi"], hosts, _SHELL)
    inner = {**environment, **listening.rank_environment()}
    keepalive = [(address, keepalive_port)]
    process = mpirun_process(spec, command, slots, numa_nodes(), inner, keepalive)
    process.environment.update(
        {
            **listening.mpirun_environment(address),
            **network_parameters(interface_of(address)),
            "OMPI_MCA_orte_leave_session_attached": "1",
            WORKERS_VARIABLE: json.dumps(nodes),
        }
    )
    process = replace(process, shared_memory=True)
    return ProcessPlan("worker-0", tuple(range(spec.ranks)), own_agent(), process)


def network_parameters(interface: str) -> dict[str, str]:
    """Variables that keep Open MPI on IPv4 and on one interface."""
    if not interface:
        return {}
    return {
        "OMPI_MCA_oob_tcp_if_include": interface,
        "OMPI_MCA_btl_tcp_if_include": interface,
        "OMPI_MCA_oob_tcp_disable_ipv6_family": "1",
        "OMPI_MCA_btl_tcp_disable_family": "6",
    }
