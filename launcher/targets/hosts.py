"""Ranks on several machines over ssh: a guard for each rank, or mpirun with guards below it."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from launcher.supervision.plan import Plan, ProcessPlan
from launcher.targets import engines
from launcher.targets.base import SupervisedTarget
from launcher.targets.local import guard_command, own_guard, render_orders
from launcher.targets.orders import mpirun_order, rank_order
from launcher.targets.placement import Place, place
from launcher.targets.preflight import HostFacts, examine, ssh_command
from launcher.targets.pulse import pulse

# Settings of the engines that a user makes in the shell are meant for all ranks.
_FORWARDED = (
    *("TF_CPP_", "TF_NUM_", "TF_GPU_", "TF_FORCE_GPU", "TF_ENABLE_", "TF_XLA_", "XLA_", "KERAS_"),
    *("HOROVOD_", "NCCL_", "OMP_", "PYTHONPATH"),
)


class HostsTarget(SupervisedTarget):
    """Ranks on the hosts of the job, each started by ssh with its environment on a pipe.

    (horovodrun would put the whole environment, secrets included, on ssh's command line.)
    """

    _facts: Sequence[HostFacts] = ()

    def check(self) -> None:
        engines.require(self.spec.backend)
        used = {seat.hostname for seat in self._seats()}
        hosts = [host for host in self.spec.hosts if host.name in used]
        self._facts = examine(self.spec, hosts)

    def render(self) -> str:
        self._facts = [_unknown(host.name, host.slots) for host in self.spec.hosts]
        plan = self._plan({}, 0 if self.spec.backend == "mpi" else engines.CHOSEN_AT_START)
        orders = [process.order for process in plan.processes]
        head = f"# by ssh; on every host: cd {shlex.quote(str(self.spec.directory))}"
        return render_orders(head, orders, self._seats())

    @contextmanager
    def attempt(self, environment: Mapping[str, str]) -> Iterator[Plan]:
        seen = {facts.launcher_address for facts in self._facts}
        address = next(iter(seen)) if len(seen) == 1 else ""  # "" means every interface
        with ExitStack() as stack:
            port = 0
            if self.spec.backend == "mpi":
                port = stack.enter_context(pulse(address))
            elif self.spec.backend == "horovod":
                wanted = self.spec.rendezvous_port
                port = stack.enter_context(engines.rendezvous(self._seats(), address, wanted))
            yield self._plan(environment, port)

    def _seats(self) -> tuple[Place, ...]:
        return place(self.spec.ranks, self.spec.hosts)

    def _plan(self, environment: Mapping[str, str], port: int | str) -> Plan:
        spec, seats = self.spec, self._seats()
        facts = {one.name: one for one in self._facts}
        hosts = tuple(seat.hostname for seat in seats)
        shared = {**_forwarded(), **self._passed(), **environment}
        if spec.backend == "mpi":
            return Plan((self._mpirun(facts, seats, shared, port),), hosts)
        workers = [_worker(facts[seat.hostname], seat) for seat in seats]
        processes = []
        for seat in seats:
            there = facts[seat.hostname]
            engine: dict[str, str] = {}
            if spec.backend == "horovod":
                address = there.launcher_address
                engine = engines.gloo_environment(seat, address, port, there.interface)
            elif spec.backend == "tf":
                engine = engines.tf_environment(seat.rank, workers)
            order = rank_order(
                spec, seat, there.nodes, {**shared, **engine}, silence=spec.silence_timeout
            )
            guard = shlex.join(guard_command(own_guard()[0], there.root))
            argv = ssh_command(spec, seat.hostname, f"exec {guard}")
            processes.append(ProcessPlan(seat.hostname, (seat.rank,), argv, order, remote=True))
        return Plan(tuple(processes), hosts)

    def _mpirun(
        self,
        facts: Mapping[str, HostFacts],
        seats: Sequence[Place],
        shared: Mapping[str, str],
        port: int | str,
    ) -> ProcessPlan:
        slots = {seat.hostname: seat.local_size for seat in seats}
        fewest = min(facts.values(), key=lambda one: sum(map(len, one.nodes)))
        guard = [*guard_command(own_guard()[0], fewest.root), "--mpi"]
        hosts = [f"{name}:{size}" for name, size in slots.items()]
        mpirun = engines.mpirun_command(self.spec, guard, hosts)
        most = max(slots.values())
        beats = [
            (address, int(port)) for address in {one.launcher_address for one in facts.values()}
        ]
        order = mpirun_order(self.spec, mpirun, most, fewest.nodes, shared, beats)
        return ProcessPlan("localhost", tuple(range(len(seats))), own_guard(), order)

    def _passed(self) -> dict[str, str]:
        names = self.spec.pass_environment
        return {name: os.environ[name] for name in names if name in os.environ}


def _forwarded() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name.startswith(_FORWARDED)}


def _worker(there: HostFacts, seat: Place) -> str:
    port = there.ports[seat.local_rank] if there.ports else engines.CHOSEN_AT_START
    return f"{there.address}:{port}"


def _unknown(name: str, slots: int) -> HostFacts:
    """A host nobody has asked yet, for rendering."""
    later = engines.CHOSEN_AT_START
    return HostFacts(name, "", later, name, later, (tuple(range(slots)),), ())
