"""Fixtures for tests that run the launcher itself."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launcher.launches import Launch


@pytest.fixture
def new_launch(tmp_path: Path) -> Iterator[Callable[[], Launch]]:
    """Launches in separate directories; remaining processes are killed."""
    launches: list[Launch] = []

    def create() -> Launch:
        launches.append(Launch(tmp_path / f"launch-{len(launches)}"))
        return launches[-1]

    yield create
    for launch in launches:
        if hasattr(launch, "job"):
            launch.job.kill()


@pytest.fixture
def launch(new_launch: Callable[[], Launch]) -> Launch:
    """One launch, not started yet."""
    return new_launch()
