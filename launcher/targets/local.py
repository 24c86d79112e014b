"""The ranks on this machine: one guard each, or one guard around mpirun."""

import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import launcher
from launcher.spec import Host
from launcher.supervision.guard.order import VARIABLE as ORDER_VARIABLE
from launcher.supervision.guard.order import Order
from launcher.supervision.plan import Plan, ProcessPlan
from launcher.supervision.sweep import marked
from launcher.targets import engines, loopback
from launcher.targets.base import Command, SupervisedTarget
from launcher.targets.orders import mpirun_order, rank_order
from launcher.targets.placement import Place, numa_nodes, place, require_cores

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from launcher.supervision.guard.__main__ import main; main()"
)
_HERE = "localhost"


def guard_command(python: str, root: str) -> tuple[str, ...]:
    """Starts a guard from the launcher in the directory `root`, clear of the user's own paths."""
    return (python, "-I", "-S", "-c", _BOOT, root)


def own_guard() -> tuple[str, ...]:
    """Starts a guard with this Python and this launcher."""
    return guard_command(sys.executable, str(Path(launcher.__file__).parents[1]))


class LocalTarget(SupervisedTarget):
    """Ranks on this machine; what they open to each other stays on loopback."""

    def check(self) -> None:
        require_cores(self.spec)
        engines.require(self.spec.backend)

    def render(self) -> str:
        orders = [process.order for process in self._plan({}, [engines.CHOSEN_AT_START]).processes]
        return render_orders(f"cd {shlex.quote(str(self.spec.directory))}", orders, self._seats())

    @contextmanager
    def attempt(self, environment: Mapping[str, str]) -> Iterator[Plan]:
        with ExitStack() as stack:
            ports: list[int] = []
            if self.spec.backend == "horovod":
                port, seats = self.spec.rendezvous_port, self._seats()
                server = engines.rendezvous(seats, engines.LOOPBACK, port)
                ports = [stack.enter_context(server)]
            elif self.spec.backend == "tf":
                ports = stack.enter_context(engines.held_ports(self.spec.ranks))
            elif self.spec.backend == "mpi":
                environment = {**environment, **loopback.rank_environment()}
            yield self._plan(marked(environment), ports)

    def _seats(self) -> tuple[Place, ...]:
        return place(self.spec.ranks, [Host(name=_HERE, slots=self.spec.ranks)])

    def _plan(self, environment: Mapping[str, str], ports: Sequence[int | str]) -> Plan:
        spec, nodes, ranks = self.spec, numa_nodes(), range(self.spec.ranks)
        hosts = (_HERE,) * spec.ranks
        if spec.backend == "mpi":
            mpirun = engines.mpirun_command(spec, [*own_guard(), "--mpi"], ())
            # mpirun's own temporary directory is not for the ranks.
            inner = {"TMPDIR": tempfile.gettempdir(), **environment}
            order = mpirun_order(spec, mpirun, spec.ranks, nodes, inner)
            order.environment.update(loopback.mpirun_environment())
            return Plan((ProcessPlan(_HERE, tuple(ranks), own_guard(), order),), hosts)
        processes = []
        for seat in self._seats():
            engine = self._engine(seat, ports)
            order = rank_order(spec, seat, nodes, {**environment, **engine})
            processes.append(ProcessPlan(_HERE, (seat.rank,), own_guard(), order))
        return Plan(tuple(processes), hosts)

    def _engine(self, seat: Place, ports: Sequence[int | str]) -> dict[str, str]:
        if self.spec.backend == "horovod":
            return engines.gloo_environment(seat, engines.LOOPBACK, ports[0], "lo")
        if self.spec.backend == "tf":
            chosen = ports if len(ports) == seat.size else [ports[0]] * seat.size
            workers = [f"{engines.LOOPBACK}:{port}" for port in chosen]
            return engines.tf_environment(seat.rank, workers)
        return {}


def render_orders(head: str, orders: Sequence[Order], seats: Sequence[Place]) -> str:
    """The commands behind the orders, without the guards: what one would type oneself."""
    commands = []
    for order in orders:
        if order.raw:
            inner = Order.decode(order.environment[ORDER_VARIABLE])
            argv = [*_without_guard(order.argv), *inner.argv]
            environment = inner.environment | inner.by_local_rank[0]
            commands.append(Command(tuple(argv), environment, f"{len(seats)} ranks"))
        else:
            comment = f"rank {order.rank} on {seats[order.rank].hostname}"
            commands.append(Command(tuple(order.argv), order.environment, comment))
    return "\n\n".join([head, *map(str, commands)])


def _without_guard(mpirun: Sequence[str]) -> Sequence[str]:
    end = len(mpirun) - len(own_guard()) - 1
    words = list(mpirun[:end])
    exported = words.index(ORDER_VARIABLE)
    return words[: exported - 1] + words[exported + 1 :]
