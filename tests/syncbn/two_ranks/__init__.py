"""What two ranks of every engine are asked for beside the matrix: whole trainings, and their tools.

Each part runs on both ranks of a matrix job, and test_matrix_two_ranks.py compares its answers with
those of one process that has all rows.
"""

from collections.abc import Callable
from typing import Any

from syncbn.communicators import Communicator
from tests.syncbn.two_ranks import callbacks, statistics, switch, telemetry, training

PARTS: dict[str, Callable[[Communicator], dict[str, Any]]] = {
    "training": training.run,
    "callbacks": callbacks.run,
    "statistics": statistics.run,
    "switch": switch.run,
    "telemetry": telemetry.run,
}


def run(communicator: Communicator) -> dict[str, list[dict[str, Any]]]:
    """The answers of this rank, as the matrix keeps them."""
    return {name: [part(communicator)] for name, part in PARTS.items()}
