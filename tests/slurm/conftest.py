"""One cluster for all tests; the jobs of each test end with it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import Jobs


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    # munged refuses sockets with long paths.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as directory,
        Cluster(Path(directory) / "cluster") as cluster,
    ):
        yield cluster


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(cluster, tmp_path)
    yield jobs
    jobs.close()
