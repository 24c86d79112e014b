"""Ranks on several machines over ssh: one agent per rank, or mpirun with agents below it."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from launcher.agent.command import agent_command, own_agent
from launcher.agent.keepalive import serve_keepalive
from launcher.agent.plan import Plan, ProcessPlan
from launcher.placement import backends
from launcher.placement.process_specs import mpirun_process, rank_process
from launcher.placement.slots import Slot, assign_slots
from launcher.spec import JobSpec
from launcher.targets.commands import render_processes
from launcher.targets.hosts.preflight import HostFacts, examine, ssh_command
from launcher.targets.supervised import SupervisedTarget

# Settings of TensorFlow and the backends in the user's shell apply to all ranks.
_FORWARDED = (
    *("TF_CPP_", "TF_NUM_", "TF_GPU_", "TF_FORCE_GPU", "TF_ENABLE_", "TF_XLA_", "XLA_", "KERAS_"),
    *("HOROVOD_", "NCCL_", "OMP_", "PYTHONPATH"),
)


class HostsTarget(SupervisedTarget):
    """The hosts that the job names."""

    name = "hosts"

    def job(self, spec: JobSpec) -> "HostsJob":
        return HostsJob(spec)

    def render(self, spec: JobSpec) -> str:
        return self.job(spec).render()


class HostsJob:
    """Ranks on the hosts of the job, each started by ssh with its environment on a pipe.

    horovodrun would put the whole environment, secrets included, on ssh's command line.
    """

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self._facts: Sequence[HostFacts] = ()

    def check(self) -> None:
        backends.require(self.spec.backend)
        used = {slot.hostname for slot in self._slots()}
        hosts = [host for host in self.spec.hosts if host.name in used]
        self._facts = examine(self.spec, hosts)

    def render(self) -> str:
        self._facts = [_unknown(host.name, host.slots) for host in self.spec.hosts]
        plan = self._plan({}, 0 if self.spec.backend == "mpi" else backends.CHOSEN_AT_START)
        head = f"# by ssh; on every host: cd {shlex.quote(str(self.spec.directory))}"
        return render_processes(head, plan, self._slots())

    @contextmanager
    def attempt(self, environment: Mapping[str, str]) -> Iterator[Plan]:
        seen = {facts.launcher_address for facts in self._facts}
        address = next(iter(seen)) if len(seen) == 1 else ""  # "" means every interface
        with ExitStack() as stack:
            port = 0
            if self.spec.backend == "mpi":
                port = stack.enter_context(serve_keepalive(address))
            elif self.spec.backend == "horovod":
                wanted = self.spec.rendezvous_port
                port = stack.enter_context(backends.rendezvous(self._slots(), address, wanted))
            yield self._plan(environment, port)

    def _slots(self) -> tuple[Slot, ...]:
        return assign_slots(self.spec.ranks, self.spec.hosts)

    def _plan(self, environment: Mapping[str, str], port: int | str) -> Plan:
        spec, slots = self.spec, self._slots()
        facts = {one.name: one for one in self._facts}
        hosts = tuple(slot.hostname for slot in slots)
        shared = {**_forwarded(), **self._passed(), **environment}
        if spec.backend == "mpi":
            return Plan((self._mpirun(facts, slots, shared, port),), hosts)
        workers = [_worker(facts[slot.hostname], slot) for slot in slots]
        processes = []
        for slot in slots:
            there = facts[slot.hostname]
            peers: dict[str, str] = {}
            if spec.backend == "horovod":
                address = there.launcher_address
                peers = backends.gloo_environment(slot, address, port, there.interface)
            elif spec.backend == "tf":
                peers = backends.tf_environment(slot.rank, workers)
            process = rank_process(
                spec, slot, there.nodes, {**shared, **peers}, silence=spec.silence_timeout
            )
            agent = shlex.join(agent_command(own_agent()[0], there.root))
            argv = ssh_command(spec, slot.hostname, f"exec {agent}")
            processes.append(ProcessPlan(slot.hostname, (slot.rank,), argv, process, remote=True))
        return Plan(tuple(processes), hosts)

    def _mpirun(
        self,
        facts: Mapping[str, HostFacts],
        slots: Sequence[Slot],
        shared: Mapping[str, str],
        port: int | str,
    ) -> ProcessPlan:
        sizes = {slot.hostname: slot.local_size for slot in slots}
        fewest = min(facts.values(), key=lambda one: sum(map(len, one.nodes)))
        agent = [*agent_command(own_agent()[0], fewest.root), "--mpi"]
        hosts = [f"{name}:{size}" for name, size in sizes.items()]
        mpirun = backends.mpirun_command(self.spec, agent, hosts, self.spec.ssh)
        most = max(sizes.values())
        keepalive = [
            (address, int(port)) for address in {one.launcher_address for one in facts.values()}
        ]
        process = mpirun_process(self.spec, mpirun, most, fewest.nodes, shared, keepalive)
        return ProcessPlan("localhost", tuple(range(len(slots))), own_agent(), process)

    def _passed(self) -> dict[str, str]:
        names = self.spec.pass_environment
        return {name: os.environ[name] for name in names if name in os.environ}


def _forwarded() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name.startswith(_FORWARDED)}


def _worker(there: HostFacts, slot: Slot) -> str:
    port = there.ports[slot.local_rank] if there.ports else backends.CHOSEN_AT_START
    return f"{there.address}:{port}"


def _unknown(name: str, slots: int) -> HostFacts:
    """A host that has not been probed, for rendering."""
    later = backends.CHOSEN_AT_START
    return HostFacts(name, "", later, name, later, (tuple(range(slots)),), ())
