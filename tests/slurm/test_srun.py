"""Programs that srun starts without our launcher."""

import json
import sys
from collections.abc import Sequence

import pytest

from tests.slurm.jobs import Jobs, training

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

INIT = "import syncbn; world = syncbn.init(); print(world.name, world.rank, world.size, flush=True)"


def _srun(jobs: Jobs, options: Sequence[str], program: Sequence[str]) -> str:
    words = ["srun", "--chdir", str(jobs.directory), *options, sys.executable, *program]
    return jobs.cluster("env", "TF_CPP_MIN_LOG_LEVEL=3", "TF_NUM_INTRAOP_THREADS=1", *words)


def test_without_pmix_the_tasks_are_a_tensorflow_cluster(jobs: Jobs) -> None:
    told = _srun(jobs, ["--mpi=none", "--nodes=2", "--ntasks=3"], ["-c", INIT])
    assert sorted(told.splitlines()) == ["tf 0 3", "tf 1 3", "tf 2 3"]


def test_with_pmix_the_tasks_reduce_over_mpi(jobs: Jobs) -> None:
    if jobs.cluster("srun", "--mpi=pmix", "--ntasks=1", "echo", "yes", check=False) != "yes":
        pytest.skip("Slurm finds no PMIx: apt-get install libpmix-dev")
    # Two slurmd of one machine would use the same sockets of PMIx.
    told = _srun(jobs, ["--mpi=pmix", "--nodes=1", "--ntasks=2"], ["-c", INIT])
    assert sorted(told.splitlines()) == ["mpi 0 2", "mpi 1 2"]


def test_the_trainer_finds_its_rank(jobs: Jobs) -> None:
    program = [*training(epochs=1)[1:], "--output", "out"]
    _srun(jobs, ["--mpi=none", "--nodes=2", "--ntasks=2"], program)
    summary = json.loads((jobs.directory / "out" / "summary.json").read_text())
    assert (summary["world_size"], summary["backend"]) == (2, "tf")


def test_a_single_task_trains_alone(jobs: Jobs) -> None:
    assert _srun(jobs, ["--ntasks=1"], ["-c", INIT]) == "local 0 1"
