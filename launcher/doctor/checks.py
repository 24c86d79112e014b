"""All checks, several at a time, in the order they are shown."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.doctor.finding import Finding
from launcher.doctor.machine import (
    look_at_cores,
    look_at_disk,
    look_at_limits,
    look_at_memory,
    look_at_ports,
)
from launcher.doctor.self_test import try_all_reduce
from launcher.doctor.services import look_at_docker, look_at_kubernetes
from launcher.doctor.software import look_at_horovod, look_at_mpi, look_at_tensorflow


def examine(output: Path, self_test: bool) -> Iterator[Finding]:
    """Every finding, as soon as it and those before it are known."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        look_at_tensorflow,
        look_at_horovod,
        look_at_mpi,
        look_at_cores,
        look_at_memory,
        look_at_limits,
        look_at_ports,
        lambda: look_at_disk(output),
        look_at_docker,
        look_at_kubernetes,
    ]
    with ThreadPoolExecutor() as pool:
        for findings in pool.map(lambda check: list(check()), checks):
            yield from findings
    if self_test:  # alone, or the others' work would be in its latency
        yield from try_all_reduce()
