"""One image for all tests, built from the Dockerfile as it is; an engine of its own for each."""

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.docker.containers import Engine
from tests.docker.engine import docker_command
from tests.processes import REPOSITORY

IMAGE = "syncbn:cpu"
BUILD_SECONDS = 1500


@pytest.fixture(scope="session")
def image() -> str:
    """The image of the Dockerfile's default target, layers kept from one run to the next."""
    started = time.monotonic()
    built = build("cpu", IMAGE)
    assert built.returncode == 0, f"{built.stdout[-4000:]}\n{built.stderr[-4000:]}"
    print(f"{IMAGE} built in {time.monotonic() - started:.0f} s")
    return IMAGE


@pytest.fixture
def engine(image: str) -> Iterator[Engine]:
    with Engine(image) as engine:
        yield engine


def build(target: str, name: str) -> subprocess.CompletedProcess[str]:
    """`docker build` of one target."""
    return subprocess.run(
        [docker_command() or "docker", "build", "--target", target, "--tag", name, "."],
        cwd=REPOSITORY,
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
