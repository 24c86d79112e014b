"""Ranks on this machine: one agent per rank, or one agent that runs mpirun."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from launcher.agent.command import own_agent
from launcher.agent.plan import Plan, ProcessPlan
from launcher.placement import backends
from launcher.placement.process_specs import local_mpirun_process, rank_process
from launcher.placement.slots import Slot, assign_slots, numa_nodes, require_cores
from launcher.runs.processes import marked
from launcher.spec import Host, JobSpec
from launcher.targets.commands import render_processes
from launcher.targets.supervised import SupervisedTarget

_HERE = "localhost"


class LocalTarget(SupervisedTarget):
    """This machine."""

    name = "local"

    def job(self, spec: JobSpec) -> "LocalJob":
        return LocalJob(spec)

    def render(self, spec: JobSpec) -> str:
        return self.job(spec).render()


class LocalJob:
    """Ranks on this machine; their ports are on loopback only."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec

    def check(self) -> None:
        require_cores(self.spec)
        backends.require(self.spec.backend)

    def render(self) -> str:
        plan = self._plan({}, [backends.CHOSEN_AT_START])
        head = f"cd {shlex.quote(str(self.spec.directory))}"
        return render_processes(head, plan, self._slots())

    @contextmanager
    def attempt(self, environment: Mapping[str, str]) -> Iterator[Plan]:
        with ExitStack() as stack:
            ports: list[int] = []
            if self.spec.backend == "horovod":
                port, slots = self.spec.rendezvous_port, self._slots()
                server = backends.rendezvous(slots, backends.LOOPBACK, port)
                ports = [stack.enter_context(server)]
            elif self.spec.backend == "tf":
                ports = stack.enter_context(backends.held_ports(self.spec.ranks))
            yield self._plan(marked(environment), ports)

    def _slots(self) -> tuple[Slot, ...]:
        return assign_slots(self.spec.ranks, [Host(name=_HERE, slots=self.spec.ranks)])

    def _plan(self, environment: Mapping[str, str], ports: Sequence[int | str]) -> Plan:
        spec, nodes, ranks = self.spec, numa_nodes(), range(self.spec.ranks)
        hosts = (_HERE,) * spec.ranks
        if spec.backend == "mpi":
            process = local_mpirun_process(spec, nodes, environment)
            return Plan((ProcessPlan(_HERE, tuple(ranks), own_agent(), process),), hosts)
        processes = []
        for slot in self._slots():
            peers = self._peer_variables(slot, ports)
            process = rank_process(spec, slot, nodes, {**environment, **peers})
            processes.append(ProcessPlan(_HERE, (slot.rank,), own_agent(), process))
        return Plan(tuple(processes), hosts)

    def _peer_variables(self, slot: Slot, ports: Sequence[int | str]) -> dict[str, str]:
        """The variables through which the rank finds its peers."""
        if self.spec.backend == "horovod":
            return backends.gloo_environment(slot, backends.LOOPBACK, ports[0], "lo")
        if self.spec.backend == "tf":
            chosen = ports if len(ports) == slot.size else [ports[0]] * slot.size
            workers = [f"{backends.LOOPBACK}:{port}" for port in chosen]
            return backends.tf_environment(slot.rank, workers)
        return {}
