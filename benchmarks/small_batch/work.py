"""Runs a study in subprocesses: trainings on all cores, numerics on two ranks.

Separate from `__main__`, whose functions the processes of a pool cannot import.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from benchmarks.small_batch.plan import Group, Plan, Result
from benchmarks.small_batch.store import Study, VarianceError, save
from launcher.errors import LauncherError


def train(study: Study, file: Path) -> None:
    """Trains the missing groups, one per core, and saves after each."""
    missing = study.missing()
    if not missing:
        return
    spawn = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(missing)), spawn) as pool:
        futures = {pool.submit(_train_group, study.plan, group): group for group in missing}
        for done, future in enumerate(as_completed(futures), start=1):
            study.results.extend(future.result())
            save(study, file)
            group = futures[future]
            name = f"{group.world} ranks of {group.batch} images, norm {group.norm}"
            print(f"{done} of {len(missing)}: {name}", flush=True)


def _train_group(plan: Plan, group: Group) -> list[Result]:
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    from benchmarks.small_batch.training import train_group  # TensorFlow reads these once

    return train_group(plan, group)


def measure_numerics() -> list[VarianceError]:
    """The numerical study, on two ranks.

    Raises:
        LauncherError: A rank failed.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "errors.json"
        launch = [sys.executable, "-m", "launcher", "run", "-np", "2", "--backend", "mpi", "-q"]
        launch += ["--max-restarts", "0", "--output", directory, "--"]
        program = [sys.executable, "-m", "benchmarks.small_batch.numerics", str(file)]
        if subprocess.run([*launch, *program], check=False).returncode != 0:
            raise LauncherError("the numerical study failed; see the output of its ranks above")
        return [VarianceError(**row) for row in json.loads(file.read_text())]
