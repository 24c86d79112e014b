"""Runs the rank programs of the matrix, each job once, and stores the reports of its ranks."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from syncbn import dispatch
from syncbn.communicators.local import LocalCommunicator
from tests.processes import Horovodrun, Launcher, Mpirun, TensorFlowCluster
from tests.requirements import require_horovod
from tests.syncbn import counting, features, matrix
from tests.syncbn.worlds import ProcessWorld, World, mirrored

PROGRAM = "tests.syncbn.matrix_program"

# World: the launcher of its job, the launcher's options, the backend.
JOBS: dict[str, tuple[type[Launcher], list[str], str]] = {
    "mpi": (Mpirun, [], "mpi"),
    "horovod-mpi": (Horovodrun, ["--mpi"], "horovod"),
    "horovod-gloo": (Horovodrun, ["--gloo"], "horovod"),
    "multiworker": (TensorFlowCluster, [], "tf"),
}
# A program that uses its own strategy without `init`. It then takes the same path as the world
# inside a strategy, so one dtype is enough.
ALONE = "multiworker-strategy-alone"
# Additional worlds of the multi-worker job, with their names in the answer of a rank.
INSIDE_STRATEGY = {"multiworker-strategy": "tf-strategy", ALONE: "tf-strategy-alone"}
# The second world uses TensorFlow operations, as on a GPU.
LOCAL = ("local", "local-by-tensorflow")
IN_PROCESS = [
    *(pytest.param(world, 1) for world in LOCAL),
    *(pytest.param("mirrored", size) for size in (2, 3)),
]
_MARKS = [pytest.mark.multiprocess, pytest.mark.timeout(300)]
MULTI_PROCESS = [
    pytest.param(world, size, marks=_MARKS)
    for size in (2, 3)
    for world in (*JOBS, *INSIDE_STRATEGY)
]
WORLDS = [*IN_PROCESS, *MULTI_PROCESS]


def dtypes(world: str) -> tuple[str, ...]:
    """The dtypes of the matrix in this world."""
    return ("float32",) if world == ALONE else tuple(matrix.POLICIES)


# The report of one world: part of the program → name of the case → one report per rank.
Reports = dict[str, dict[str, list[Any]]]


def report(world: World) -> Reports:
    """The report of one world, from the ranks held here."""
    whole = {"matrix": matrix.run(world, tuple(matrix.POLICIES)), "features": features.run(world)}
    return whole | _counts(world)


def report_alone(world: World) -> Reports:
    """The report of the world `ALONE`."""
    return {"matrix": matrix.run(world, dtypes(ALONE))} | _counts(world)


def _counts(world: World) -> Reports:
    return {"counts": {name: [found] for name, found in counting.count(world).items()}}


class Runs:
    """The reports of each world, created on first use."""

    def __init__(self, directory: Callable[[str], Path], stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._reports: dict[tuple[str, int], Reports | Exception] = {}

    def reports(self, world: str, size: int) -> Reports:
        job = "multiworker" if world in INSIDE_STRATEGY else world
        if (job, size) not in self._reports:
            try:
                self._run(job, size)
            except Exception as error:  # every test of the job reports it
                self._reports[job, size] = error
        found = self._reports.get((world, size), self._reports[job, size])
        if isinstance(found, Exception):
            raise found
        return found

    def _run(self, job: str, size: int) -> None:
        if job == "local":
            self._reports[job, size] = report(ProcessWorld(LocalCommunicator()))
            return
        if job == "local-by-tensorflow":
            with mock.patch.object(dispatch, "native_operations", return_value=None):
                self._reports[job, size] = report(ProcessWorld(LocalCommunicator()))
            return
        if job == "mirrored":
            self._reports[job, size] = report(mirrored(size))
            return
        kind, options, backend = JOBS[job]
        if kind is Horovodrun:
            require_horovod()
        launcher = kind(self._directory(f"{job}-{size}-"))
        self._stack.callback(launcher.close)
        answers = launcher(size, PROGRAM, [backend], timeout=280, options=options).json()
        names = {job: backend}
        if job == "multiworker":
            names |= INSIDE_STRATEGY
        for world, name in names.items():
            self._reports[world, size] = _joined([answer[name] for answer in answers])


def _joined(answers: list[dict[str, dict[str, list[Any]]]]) -> Reports:
    """Merges the reports of all ranks."""
    return {
        part: {case: [r for answer in answers for r in answer[part][case]] for case in cases}
        for part, cases in answers[0].items()
    }
