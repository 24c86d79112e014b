"""Which tests one worker of `pytest -n` must have: those that share a fixture, a job or an engine.

xdist's own groups (`xdist_group`, `--dist loadgroup`) write into a field of the test that pytest
9.2 no longer reads, and so are without effect; this reads the test's name instead.
"""

import re

from xdist.scheduler import LoadScopeScheduling

# Each world of the matrix is a job of its own, but those inside a strategy are part of another's.
_WORLD = re.compile(r"/test_matrix\w*\.py::\w+\[([a-z-]+?)(?:-strategy(?:-alone)?)?-(\d)[-\]]")


def group(nodeid: str) -> str:
    """The group of a test by its name: its file, with two exceptions."""
    if nodeid.startswith("tests/docker/"):
        return "docker"
    world = _WORLD.search(nodeid)
    return f"{world[1]}-{world[2]}" if world else nodeid.partition("::")[0]


class ByGroup(LoadScopeScheduling):
    """Hands out whole groups, in the order they were collected in."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
