"""Statistics recomputed over the data of both ranks, and a data set that fails on one rank."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from syncbn import recompute_statistics
from syncbn.communicators import Communicator
from tests.syncbn.perceptron import perceptron, rows, statistics

# Rows of the first rank; the second has the others.
CUTS = {"uneven": 31, "empty": 0}


def data() -> np.ndarray:
    return rows(50)


class _Broken:
    def __iter__(self) -> Iterator[np.ndarray]:
        yield data()
        raise OSError("rank 1 lost its disk")


def run(communicator: Communicator) -> dict[str, Any]:
    first = communicator.rank == 0
    report: dict[str, Any] = {}
    for name, cut in CUTS.items():
        mine = data()[:cut] if first else data()[cut:]
        batches = [mine[i : i + 7] for i in range(0, len(mine), 7)]
        report[name] = _bits(recompute_statistics(perceptron(renorm=True), batches))
    model = perceptron()
    before = _bits(model)
    try:
        recompute_statistics(model, [data()] if first else _Broken())
    except Exception as error:
        report["failure"] = f"{type(error).__name__}: {error}"
    report["restored"] = _bits(model) == before
    return report


def _bits(model: keras.Model) -> list[str]:
    return [value.tobytes().hex() for value in statistics(model).values()]
