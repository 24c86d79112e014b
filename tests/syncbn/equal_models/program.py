"""The program of each rank: `python -m tests.syncbn.equal_models.program BACKEND [VARIANT ...]`.

Prints one JSON line: for each variant a fingerprint of all trained variables, or its error.
"""

import hashlib
import json
import sys
import traceback
from functools import partial
from typing import Any

import keras
import numpy as np

import syncbn
from syncbn import consistency
from tests.syncbn.equal_models.mistakes import CAUGHT, Mistake
from tests.syncbn.equal_models.variants import VARIANTS, Variant


def outcome(run: Variant, rank: int) -> dict[str, Any]:
    keras.utils.set_random_seed(1000 + rank)
    try:
        trained = [np.asarray(variable) for variable in run(rank)]
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    if not all(np.isfinite(np.asarray(v, "float64")).all() for v in trained):
        return {"error": "not finite"}
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in trained))
    return {"digest": digest.hexdigest()[:16]}


def _nothing_trained(mistake: Mistake, rank: int) -> list[Any]:
    mistake(rank)
    return []


def main(backend: str, names: list[str]) -> dict[str, Any]:
    communicator = syncbn.init(backend)
    answers = {}
    for name in names or VARIANTS:
        print(name, file=sys.stderr, flush=True)
        answers[name] = outcome(VARIANTS[name], communicator.rank)
        communicator.barrier()
    for mistake in CAUGHT:
        print(mistake.__name__, file=sys.stderr, flush=True)
        consistency.disable()  # a rank must not report this variant's error in the next one
        mailbox = communicator.open_mailbox()
        assert mailbox is not None
        consistency.enable(communicator, mailbox)
        answers[mistake.__name__] = outcome(partial(_nothing_trained, mistake), communicator.rank)
        communicator.barrier()
    consistency.disable()
    return answers


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
