"""The program of each of four ranks: `python -m tests.syncbn.communicators_program BACKEND`.

Calls every method of a communicator and prints the results as one JSON line.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

import syncbn
from syncbn import SyncBatchNormalization
from syncbn.communicators import Communicator, resolve
from tests.syncbn import features
from tests.syncbn.worlds import ProcessWorld

DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "int64")


def refusal(action: Callable[[], Any]) -> str:
    """Type and message of the error that `action` raises."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def sums(communicator: Communicator) -> dict[str, list[Any]]:
    """Rank r contributes multiples of r + 1; by dtype, eagerly and in a graph."""
    answer = {}
    for dtype in DTYPES:
        mine = tf.cast(tf.reshape(tf.range(1, 7) * (communicator.rank + 1), [2, 3]), dtype)
        in_graph = tf.function(lambda t, d=dtype: communicator.all_reduce(t, f"sum_{d}"))
        totals = [communicator.all_reduce(mine, f"sum_{dtype}"), in_graph(mine)]
        assert all(total.dtype == mine.dtype for total in totals)
        answer[dtype] = [tf.cast(total, tf.float64).numpy().tolist() for total in totals]
    return answer


def random_bits(communicator: Communicator) -> str:
    """Sums whose last bits depend on the order of addition."""
    generator = np.random.default_rng(communicator.rank)
    wide = generator.normal(size=1000) * 10.0 ** generator.integers(-8, 8, size=1000)
    parts = communicator.all_reduce_many([tf.constant(wide), tf.constant(wide, tf.float32)], "bits")
    return "".join(part.numpy().tobytes().hex() for part in parts)


def many(communicator: Communicator) -> list[Any]:
    """Several shapes and dtypes at once, including a scalar and an empty tensor."""
    tensors = [
        tf.constant(communicator.rank, tf.float32),
        tf.fill([2, 2], tf.constant(communicator.rank, tf.float64)),
        tf.zeros([0, 3], tf.float32),
        tf.constant([communicator.rank, 1], tf.int32),
        tf.constant([1.0, 2.0], tf.float32),
    ]
    in_graph = tf.function(lambda: communicator.all_reduce_many(tensors, "many"))
    answers = []
    for totals in (communicator.all_reduce_many(tensors, "many"), in_graph()):
        for total, tensor in zip(totals, tensors, strict=True):
            assert (total.shape, total.dtype) == (tensor.shape, tensor.dtype)
        answers.append([total.numpy().tolist() for total in totals])
    return answers


def broadcasts(communicator: Communicator) -> list[list[str]]:
    """Bit patterns from the first and the last rank, eagerly and in a graph."""
    patterns = [
        np.array([[np.nan, -0.0], [np.inf, communicator.rank]], "float32"),
        np.array([communicator.rank + 1e-300, 5e-324], "float64"),
        np.array([2**62 + communicator.rank], "int64"),
        np.array([communicator.rank % 2 == 0, True]),
        np.array([communicator.rank, 200], "uint8"),
        np.array(communicator.rank, "float16"),
        np.zeros((0, 2), "float32"),
    ]
    tensors = [tf.constant(pattern) for pattern in patterns]
    tensors.append(tf.cast([communicator.rank + 0.5], tf.bfloat16))
    tensors.append(tf.constant([2**31 + communicator.rank], tf.uint32))
    answers = []
    for root in (0, communicator.size - 1):
        for received in (
            communicator.broadcast(tensors, root),
            tf.function(lambda root=root: communicator.broadcast(tensors, root))(),
        ):
            for tensor, original in zip(received, tensors, strict=True):
                assert (tensor.shape, tensor.dtype) == (original.shape, original.dtype)
            answers.append([tensor.numpy().tobytes().hex() for tensor in received])
    return answers


def barrier(communicator: Communicator) -> tuple[float, float]:
    """The times before and after the barrier; the first rank is late."""
    if communicator.rank == 0:
        time.sleep(0.5)
    came = time.time()
    communicator.barrier()
    return came, time.time()


def subgroups(communicator: Communicator) -> dict[str, Any]:
    pair = communicator.subgroup(2)
    value = tf.constant([10.0**communicator.rank], tf.float64)
    in_graph = tf.function(lambda: pair.all_reduce(value, "pair"))
    alone = communicator.subgroup(1)
    pair.barrier()
    return {
        "place": [pair.rank, pair.size],
        "sums": [float(pair.all_reduce(value, "pair")[0]), float(in_graph()[0])],
        "from its last": float(pair.broadcast([value], 1)[0][0]),
        "alone": [alone.rank, alone.size, float(alone.all_reduce(value, "alone")[0])],
        "whole": communicator.subgroup(communicator.size) is communicator,
        "kept": communicator.subgroup(2) is pair,
        "uneven": refusal(lambda: communicator.subgroup(3)),
    }


def branches(communicator: Communicator) -> list[float]:
    """Twenty independent sums in one graph."""
    step = tf.function(
        lambda x: [communicator.all_reduce(x * float(k), f"branch/{k}") for k in range(20)]
    )
    return [float(total) for total in step(tf.constant(1.0))]


def unequal_names(communicator: Communicator) -> list[float]:
    """One rank has built additional layers, so automatic names differ between ranks."""
    if communicator.rank == 1:
        for _ in range(3):
            SyncBatchNormalization()
    layer = SyncBatchNormalization(momentum=0.0)
    x = tf.constant([[float(communicator.rank)]])
    tf.function(lambda x: layer(x, training=True))(x)
    in_graph = float(layer.moving_mean.numpy()[0])
    layer(x, training=True)
    return [in_graph, float(layer.moving_mean.numpy()[0])]


def main(backend: str) -> dict[str, Any]:
    communicator = syncbn.init(backend)
    others = [name for name in ("horovod", "mpi", "tf", "local") if name != backend]
    layer = SyncBatchNormalization(communicator=others[0])
    groups = ("group of one", "two groups", "group of all")
    return {
        "place": [
            communicator.name,
            communicator.rank,
            communicator.size,
            communicator.local_rank,
            communicator.local_size,
        ],
        "same": [
            found is communicator
            for found in (
                syncbn.init(backend),
                syncbn.init(),
                syncbn.communicator(),
                resolve("auto"),
                resolve(backend),
            )
        ],
        "second backend": refusal(lambda: syncbn.init(others[0])),
        "other backend": refusal(lambda: layer(np.ones((2, 3), "float32"), training=True)),
        "sums": sums(communicator),
        "bits": random_bits(communicator),
        "many": many(communicator),
        "broadcasts": broadcasts(communicator),
        "barrier": barrier(communicator),
        "cycle": os.environ.get("HOROVOD_CYCLE_TIME"),
        "free core": len(os.sched_getaffinity(0)) > communicator.local_size,
        "subgroups": subgroups(communicator),
        "branches": branches(communicator),
        "unequal names": unequal_names(communicator),
        "groups": {name: features.CHECKS[name](ProcessWorld(communicator)) for name in groups},
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
