"""The first container of a job, which leads the others: its own ranks here, theirs over TCP."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import launcher.gang.relay
from launcher.gang.network import interface_of, own_address_toward
from launcher.gang.registry import Registry, Worker
from launcher.spec import Host, JobSpec
from launcher.supervision.guard.order import Order
from launcher.supervision.plan import Plan, ProcessPlan
from launcher.supervision.stop import StopRequests
from launcher.supervision.sweep import marked
from launcher.targets import engines
from launcher.targets.base import SupervisedTarget
from launcher.targets.local import own_guard
from launcher.targets.orders import rank_order
from launcher.targets.placement import Place, numa_nodes, place

_RELAY = (sys.executable, "-I", "-S", str(Path(launcher.gang.relay.__file__)))


class GangTarget(SupervisedTarget):
    """Waits for all workers before every attempt, so that a gang starts together or not at all."""

    def __init__(self, spec: JobSpec, registry: Registry, stop: StopRequests) -> None:
        super().__init__(spec)
        self._registry, self._stop = registry, stop

    def check(self) -> None:
        engines.require(self.spec.backend)
        self._gathered()

    def render(self) -> str:
        return (
            f"# {self.spec.ranks} ranks, {self.spec.container.slots} in each container that joins"
        )

    @contextmanager
    def attempt(self, environment: Mapping[str, str]) -> Iterator[Plan]:
        workers = self._gathered()
        address = own_address_toward(workers[0].address) if workers else engines.LOOPBACK
        seats = self._seats(workers)
        with ExitStack() as stack:
            if self.spec.backend == "horovod":
                port = self.spec.container.port + 1
                stack.enter_context(engines.rendezvous(seats, address, port))
            yield self._plan(environment, workers, seats, address)

    def _gathered(self) -> list[Worker]:
        patience = self.spec.container.join_timeout
        return self._registry.wait(patience, lambda: self._stop.count > 0)

    def _seats(self, workers: list[Worker]) -> tuple[Place, ...]:
        slots = self.spec.container.slots
        names = ["worker-0", *(f"worker-{one.index}@{one.id}" for one in workers)]
        return place(self.spec.ranks, [Host(name=name, slots=slots) for name in names])

    def _plan(
        self,
        environment: Mapping[str, str],
        workers: list[Worker],
        seats: tuple[Place, ...],
        address: str,
    ) -> Plan:
        slots, processes = self.spec.container.slots, []
        addresses = [address, *(worker.address for worker in workers)]
        for seat in seats:
            world = {**environment, **self._engine(seat, seats, addresses)}
            if seat.rank < slots:
                order = rank_order(self.spec, seat, numa_nodes(), marked(world))
                plan = ProcessPlan(seat.hostname, (seat.rank,), own_guard(), order)
            else:
                worker = workers[seat.rank // slots - 1]
                # The worker fills in the rest itself: its command is its own.
                order = Order([], "", world, seat.rank, seat.local_rank)
                argv = (*_RELAY, worker.address, str(worker.port))
                plan = ProcessPlan(seat.hostname, (seat.rank,), argv, order, remote=True)
            processes.append(plan)
        return Plan(tuple(processes), tuple(seat.hostname for seat in seats))

    def _engine(
        self, seat: Place, seats: tuple[Place, ...], addresses: list[str]
    ) -> dict[str, str]:
        port, slots = self.spec.container.port, self.spec.container.slots
        if self.spec.backend == "horovod":
            interface = interface_of(addresses[0])
            return engines.gloo_environment(seat, addresses[0], port + 1, interface)
        if self.spec.backend == "tf":
            homes = [addresses[one.rank // slots] for one in seats]
            # Containers that share their host's network share its ports too.
            ports = [port + 2 + homes[:rank].count(home) for rank, home in enumerate(homes)]
            peers = [f"{home}:{at}" for home, at in zip(homes, ports, strict=True)]
            return engines.tf_environment(seat.rank, peers)
        return {}
