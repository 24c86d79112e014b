"""Which tests one worker of `pytest -n` must have: those that share a fixture, a job or a service;
and which it had better have, so that jobs that compute and jobs that wait run side by side.

xdist's own groups (`xdist_group`, `--dist loadgroup`) write into a field of the test that pytest
9.2 no longer reads, and so are without effect; this reads the test's name instead.
"""

import re

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# Each world of the matrix is a job of its own, but those inside a strategy are part of another's.
_WORLD = re.compile(r"/test_matrix\w*\.py::\w+\[([a-z-]+?)(?:-strategy(?:-alone)?)?-(\d)[-\]]")

# Each machine is made for the tests of its own.
_MACHINE = re.compile(r"^tests/machines/test_commands\.py::\w+\[([\w-]+)\]")

_MOSTLY_WAIT = ("docker", "tests/launcher/", "tests/prometheus/", "tests/browser/")
_BUT_COMPUTE = (
    *("tests/launcher/train/", "tests/launcher/metrics/", "tests/launcher/doctor/"),
    *("tests/launcher/placement/test_backends.py", "tests/launcher/horovod_build/"),
)


def group(nodeid: str) -> str:
    """The group of a test by its name: its file, with three exceptions."""
    if nodeid.startswith("tests/docker/"):
        return "docker"
    if (machine := _MACHINE.search(nodeid)) is not None:
        return f"machine {machine[1]}"
    world = _WORLD.search(nodeid)
    return f"{world[1]}-{world[2]}" if world else nodeid.partition("::")[0]


def mostly_waits(group: str) -> bool:
    """Whether its tests leave the cores to others most of the time: for containers, for lost hosts,
    for Prometheus' next look."""
    return group.startswith(_MOSTLY_WAIT) and not group.startswith(_BUT_COMPUTE)


class ByGroup(LoadScopeScheduling):
    """Hands out whole groups, in the order they were collected in.

    The first worker begins with those that mostly wait, the others with the rest: three workers
    whose jobs all compute at once on two cores take an eighth more processor time.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        waiting = node is next(iter(self.assigned_work))
        for name in self.workqueue:
            if mostly_waits(name) == waiting:
                self.workqueue.move_to_end(name, last=False)
                break
        super()._assign_work_unit(node)
