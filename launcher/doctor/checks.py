"""All checks, run in parallel, shown in order."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.doctor.finding import Finding
from launcher.doctor.machine import (
    check_cores,
    check_disk,
    check_limits,
    check_memory,
    check_ports,
)
from launcher.doctor.self_test import check_all_reduce
from launcher.doctor.services import check_docker, check_kubernetes
from launcher.doctor.software import check_horovod, check_mpi, check_tensorflow


def run_checks(output: Path, self_test: bool) -> Iterator[Finding]:
    """Every finding, as soon as it and those before it are known."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_tensorflow,
        check_horovod,
        check_mpi,
        check_cores,
        check_memory,
        check_limits,
        check_ports,
        lambda: check_disk(output),
        check_docker,
        check_kubernetes,
    ]
    with ThreadPoolExecutor() as pool:
        for findings in pool.map(lambda check: list(check()), checks):
            yield from findings
    if self_test:  # afterwards: other checks would add to its latency
        yield from check_all_reduce()
