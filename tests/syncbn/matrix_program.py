"""The program of each rank of a matrix job: `python -m tests.syncbn.matrix_program BACKEND`.

Prints one JSON line: the name of each world of this rank, and its report.
"""

import json
import sys
from typing import Any

import numpy as np

import syncbn
from syncbn.communicators import shutdown
from syncbn.communicators.distribute import ClusterCommunicator
from syncbn.errors import NotInitializedError
from tests.syncbn import fitting, two_ranks
from tests.syncbn.runs import report, report_alone
from tests.syncbn.worlds import ProcessWorld, StrategyWorld


def before_init(backend: str) -> str:
    """The error of a program without `init`, raised by the layer if it can run."""
    try:
        if backend == "tf":  # It must be initialised before any operation.
            syncbn.communicator()
        else:
            layer = syncbn.SyncBatchNormalization()
            inputs = np.ones((2, 3), "float32")
            layer(inputs, training=False)
            layer(inputs, training=True)
    except NotInitializedError as error:
        return str(error)
    return "no error"


def main(backend: str) -> dict[str, Any]:
    told = before_init(backend)
    communicator = syncbn.init(backend)
    answer: dict[str, Any] = {backend: report(ProcessWorld(communicator))}
    answer[backend] |= {
        "before init": {"told": [told]},
        "fit": {"model": [fitting.fit(communicator)]},
    }
    if communicator.size == 2:
        answer[backend]["two ranks"] = two_ranks.run(communicator)
    if isinstance(communicator, ClusterCommunicator):
        inside = StrategyWorld(communicator.strategy, [communicator.rank])
        answer["tf-strategy"] = report(inside)
        shutdown()
        answer["tf-strategy-alone"] = report_alone(inside)
    return answer


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
