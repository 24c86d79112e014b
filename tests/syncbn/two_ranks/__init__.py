"""Checks on two ranks of every backend in addition to the matrix: whole trainings, and tools.

Each part runs on both ranks of a matrix job, and test_matrix_two_ranks.py compares its answers with
those of one process with all rows.
"""

from collections.abc import Callable
from typing import Any

from syncbn.communicators import Communicator
from tests.syncbn.two_ranks import callbacks, non_finite, statistics, switch, telemetry, training

PARTS: dict[str, Callable[[Communicator], dict[str, Any]]] = {
    "training": training.run,
    "callbacks": callbacks.run,
    "non-finite": non_finite.run,
    "statistics": statistics.run,
    "switch": switch.run,
    "telemetry": telemetry.run,
}


def run(communicator: Communicator) -> dict[str, list[dict[str, Any]]]:
    """The answers of this rank, in the form of the matrix.

    Horovod over MPI sums only gradients itself, and statistics like the backend `mpi`, so only the
    trainings run there.
    """
    over_mpi = (communicator.name, communicator.transport) == ("horovod", "mpi")
    names = ["training"] if over_mpi else PARTS
    return {name: [PARTS[name](communicator)] for name in names}
