"""The first container of a job, the leader: starts its own ranks, and those of others over TCP."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import launcher.rendezvous.relay
from launcher.agent.command import own_agent
from launcher.agent.keepalive import serve_keepalive
from launcher.agent.plan import Plan, ProcessPlan
from launcher.agent.process_spec import ProcessSpec
from launcher.placement import backends
from launcher.placement.process_specs import local_mpirun_process, rank_process
from launcher.placement.slots import Slot, assign_slots, numa_nodes
from launcher.rendezvous.mpi_leader import mpirun_plan
from launcher.rendezvous.network import interface_of, own_address_toward
from launcher.rendezvous.registry import Registry, Worker
from launcher.runs.processes import marked
from launcher.spec import Host, JobSpec
from launcher.supervision.stop import StopRequests

_RELAY = (sys.executable, "-I", "-S", str(Path(launcher.rendezvous.relay.__file__)))


class Leader:
    """Waits for all workers before every attempt, so that either all ranks start or none."""

    def __init__(self, spec: JobSpec, registry: Registry, stop: StopRequests) -> None:
        self.spec = spec
        self._registry, self._stop = registry, stop

    def check(self) -> None:
        backends.require(self.spec.backend)
        self._wait_for_workers()

    @contextmanager
    def attempt(self, environment: Mapping[str, str]) -> Iterator[Plan]:
        workers = self._wait_for_workers()
        address = own_address_toward(workers[0].address) if workers else backends.LOOPBACK
        slots = self._slots(workers)
        hosts = tuple(slot.hostname for slot in slots)
        with ExitStack() as stack:
            if self.spec.backend == "mpi":
                port = stack.enter_context(serve_keepalive(address))
                yield Plan((self._mpirun(environment, workers, address, port),), hosts)
                return
            if self.spec.backend == "horovod":
                port = self.spec.container.port + 1
                stack.enter_context(backends.rendezvous(slots, address, port))
            yield Plan(tuple(self._processes(environment, workers, slots, address)), hosts)

    def _wait_for_workers(self) -> list[Worker]:
        patience = self.spec.container.join_timeout
        return self._registry.wait(patience, lambda: self._stop.count > 0)

    def _slots(self, workers: list[Worker]) -> tuple[Slot, ...]:
        size = self.spec.container.slots
        names = ["worker-0", *(f"worker-{one.index}@{one.id}" for one in workers)]
        return assign_slots(self.spec.ranks, [Host(name=name, slots=size) for name in names])

    def _mpirun(
        self, environment: Mapping[str, str], workers: list[Worker], address: str, port: int
    ) -> ProcessPlan:
        if workers:
            return mpirun_plan(self.spec, workers, address, port, marked(environment))
        process = local_mpirun_process(self.spec, numa_nodes(), marked(environment))
        return ProcessPlan("worker-0", tuple(range(self.spec.ranks)), own_agent(), process)

    def _processes(
        self,
        environment: Mapping[str, str],
        workers: list[Worker],
        slots: tuple[Slot, ...],
        address: str,
    ) -> list[ProcessPlan]:
        size, processes = self.spec.container.slots, []
        addresses = [address, *(worker.address for worker in workers)]
        for slot in slots:
            world = {**environment, **self._peer_variables(slot, slots, addresses)}
            if slot.rank < size:
                process = rank_process(self.spec, slot, numa_nodes(), marked(world))
                plan = ProcessPlan(slot.hostname, (slot.rank,), own_agent(), process)
            else:
                worker = workers[slot.rank // size - 1]
                # The worker completes it: it runs its own command.
                process = ProcessSpec([], "", world, slot.rank, slot.local_rank)
                argv = (*_RELAY, worker.address, str(worker.port))
                plan = ProcessPlan(slot.hostname, (slot.rank,), argv, process, remote=True)
            processes.append(plan)
        return processes

    def _peer_variables(
        self, slot: Slot, slots: tuple[Slot, ...], addresses: list[str]
    ) -> dict[str, str]:
        """The variables through which the rank finds its peers."""
        port, size = self.spec.container.port, self.spec.container.slots
        if self.spec.backend == "horovod":
            interface = interface_of(addresses[0])
            return backends.gloo_environment(slot, addresses[0], port + 1, interface)
        if self.spec.backend == "tf":
            homes = [addresses[one.rank // size] for one in slots]
            # Containers that share their host's network share its ports too.
            ports = [port + 2 + homes[:rank].count(home) for rank, home in enumerate(homes)]
            peers = [f"{home}:{at}" for home, at in zip(homes, ports, strict=True)]
            return backends.tf_environment(slot.rank, peers)
        return {}
