"""Ranks of a Horovod job over Gloo without a launcher, so that a test can end one of them alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from launcher.placement import backends
from launcher.placement.slots import assign_slots
from launcher.spec import Host
from tests.jobs import Job
from tests.processes import Launcher


@contextmanager
def gloo_ranks(
    single_process: Launcher,
    size: int,
    program: Path | str,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[list[Job]]:
    """One job per rank, all on this machine, while their rendezvous server runs."""
    slots = assign_slots(size, [Host(name="localhost", slots=size)])
    with backends.rendezvous(slots, backends.LOOPBACK, 0) as port:
        yield [
            single_process.start(
                1,
                program,
                arguments,
                environment=backends.gloo_environment(slot, backends.LOOPBACK, port, "lo")
                | dict(environment or {}),
            )
            for slot in slots
        ]
