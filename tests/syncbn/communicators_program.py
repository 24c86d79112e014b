"""What each of four ranks runs: `python -m tests.syncbn.communicators_program BACKEND`.

Goes through everything a communicator promises and prints the answers as one JSON line.
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
    """Type and text of the error that `action` ends with."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def sums(ranks: Communicator) -> dict[str, list[Any]]:
    """Rank r gives r + 1 and its multiples; by dtype, eagerly and in a graph."""
    answer = {}
    for dtype in DTYPES:
        mine = tf.cast(tf.reshape(tf.range(1, 7) * (ranks.rank + 1), [2, 3]), dtype)
        in_graph = tf.function(lambda t, d=dtype: ranks.all_reduce(t, f"sum_{d}"))
        totals = [ranks.all_reduce(mine, f"sum_{dtype}"), in_graph(mine)]
        assert all(total.dtype == mine.dtype for total in totals)
        answer[dtype] = [tf.cast(total, tf.float64).numpy().tolist() for total in totals]
    return answer


def random_bits(ranks: Communicator) -> str:
    """The sum of numbers whose order of addition shows in the last bits."""
    generator = np.random.default_rng(ranks.rank)
    wide = generator.normal(size=1000) * 10.0 ** generator.integers(-8, 8, size=1000)
    parts = ranks.all_reduce_many([tf.constant(wide), tf.constant(wide, tf.float32)], "bits")
    return "".join(part.numpy().tobytes().hex() for part in parts)


def many(ranks: Communicator) -> list[Any]:
    """Several shapes and dtypes at once, a scalar and an empty tensor among them."""
    tensors = [
        tf.constant(ranks.rank, tf.float32),
        tf.fill([2, 2], tf.constant(ranks.rank, tf.float64)),
        tf.zeros([0, 3], tf.float32),
        tf.constant([ranks.rank, 1], tf.int32),
        tf.constant([1.0, 2.0], tf.float32),
    ]
    in_graph = tf.function(lambda: ranks.all_reduce_many(tensors, "many"))
    answers = []
    for totals in (ranks.all_reduce_many(tensors, "many"), in_graph()):
        for total, tensor in zip(totals, tensors, strict=True):
            assert (total.shape, total.dtype) == (tensor.shape, tensor.dtype)
        answers.append([total.numpy().tolist() for total in totals])
    return answers


def broadcasts(ranks: Communicator) -> list[list[str]]:
    """Bit patterns from the first and the last rank, eagerly and in a graph."""
    patterns = [
        np.array([[np.nan, -0.0], [np.inf, ranks.rank]], "float32"),
        np.array([ranks.rank + 1e-300, 5e-324], "float64"),
        np.array([2**62 + ranks.rank], "int64"),
        np.array([ranks.rank % 2 == 0, True]),
        np.array([ranks.rank, 200], "uint8"),
        np.array(ranks.rank, "float16"),
        np.zeros((0, 2), "float32"),
    ]
    tensors = [tf.constant(pattern) for pattern in patterns]
    tensors.append(tf.cast([ranks.rank + 0.5], tf.bfloat16))
    tensors.append(tf.constant([2**31 + ranks.rank], tf.uint32))
    answers = []
    for root in (0, ranks.size - 1):
        for received in (
            ranks.broadcast(tensors, root),
            tf.function(lambda root=root: ranks.broadcast(tensors, root))(),
        ):
            for tensor, original in zip(received, tensors, strict=True):
                assert (tensor.shape, tensor.dtype) == (original.shape, original.dtype)
            answers.append([tensor.numpy().tobytes().hex() for tensor in received])
    return answers


def barrier(ranks: Communicator) -> tuple[float, float]:
    """When this rank came and when it went; the first rank comes late."""
    if ranks.rank == 0:
        time.sleep(0.5)
    came = time.time()
    ranks.barrier()
    return came, time.time()


def subgroups(ranks: Communicator) -> dict[str, Any]:
    pair = ranks.subgroup(2)
    value = tf.constant([10.0**ranks.rank], tf.float64)
    in_graph = tf.function(lambda: pair.all_reduce(value, "pair"))
    alone = ranks.subgroup(1)
    pair.barrier()
    return {
        "place": [pair.rank, pair.size],
        "sums": [float(pair.all_reduce(value, "pair")[0]), float(in_graph()[0])],
        "from its last": float(pair.broadcast([value], 1)[0][0]),
        "alone": [alone.rank, alone.size, float(alone.all_reduce(value, "alone")[0])],
        "whole": ranks.subgroup(ranks.size) is ranks,
        "kept": ranks.subgroup(2) is pair,
        "uneven": refusal(lambda: ranks.subgroup(3)),
    }


def branches(ranks: Communicator) -> list[float]:
    """Twenty sums in one graph that do not wait for each other."""
    step = tf.function(lambda x: [ranks.all_reduce(x * float(k), f"branch/{k}") for k in range(20)])
    return [float(total) for total in step(tf.constant(1.0))]


def unequal_names(ranks: Communicator) -> list[float]:
    """One rank has built layers that the others have not: automatic names differ from there on."""
    if ranks.rank == 1:
        for _ in range(3):
            SyncBatchNormalization()
    layer = SyncBatchNormalization(momentum=0.0)
    x = tf.constant([[float(ranks.rank)]])
    tf.function(lambda x: layer(x, training=True))(x)
    in_graph = float(layer.moving_mean.numpy()[0])
    layer(x, training=True)
    return [in_graph, float(layer.moving_mean.numpy()[0])]


def main(backend: str) -> dict[str, Any]:
    ranks = syncbn.init(backend)
    others = [name for name in ("horovod", "mpi", "tf", "local") if name != backend]
    layer = SyncBatchNormalization(communicator=others[0])
    groups = ("group of one", "two groups", "group of all")
    return {
        "place": [ranks.name, ranks.rank, ranks.size, ranks.local_rank, ranks.local_size],
        "same": [
            found is ranks
            for found in (
                syncbn.init(backend),
                syncbn.init(),
                syncbn.communicator(),
                resolve("auto"),
                resolve(backend),
            )
        ],
        "second engine": refusal(lambda: syncbn.init(others[0])),
        "other engine": refusal(lambda: layer(np.ones((2, 3), "float32"), training=True)),
        "sums": sums(ranks),
        "bits": random_bits(ranks),
        "many": many(ranks),
        "broadcasts": broadcasts(ranks),
        "barrier": barrier(ranks),
        "cycle": os.environ.get("HOROVOD_CYCLE_TIME"),
        "free core": len(os.sched_getaffinity(0)) > ranks.local_size,
        "subgroups": subgroups(ranks),
        "branches": branches(ranks),
        "unequal names": unequal_names(ranks),
        "groups": {name: features.CHECKS[name](ProcessWorld(ranks)) for name in groups},
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
