"""The program of each rank: sums of many sizes and dtypes over Horovod.

`python -m tests.syncbn.exchange_program`. Prints one JSON line.
"""

import json
from typing import Any

import numpy as np
import tensorflow as tf

import syncbn
from syncbn.communicators import Communicator
from syncbn.communicators.exchange import MOST_BYTES

# In bytes: empty, one message, several, and so many that Horovod sums them.
COUNTS = (0, 1, 1026, 8192, 8193, 30000, MOST_BYTES // 8, MOST_BYTES // 8 + 1)
OF_HOROVOD = ("int8", "uint8", "int32", "int64", "float32")
DTYPES = (*OF_HOROVOD, "int16", "uint16", "uint32", "uint64")


def vector(rank: int, count: int) -> np.ndarray:
    """Values whose sum depends on the order of additions."""
    generator = np.random.default_rng([rank, count])
    return generator.normal(size=count) * 10.0 ** generator.integers(-8, 8, size=count)


def sums(communicator: Communicator) -> dict[str, Any]:
    """The largest relative error, the bits of all sums, and a sum of denormals."""
    rank, size = communicator.rank, communicator.size
    errors, bits = [], []
    any_size = tf.function(
        lambda values: communicator.all_reduce(values, "any size"),
        input_signature=[tf.TensorSpec([None], tf.float64)],
    )
    for count in COUNTS:
        expected = sum(vector(r, count) for r in range(size))
        scale = sum(np.abs(vector(r, count)) for r in range(size))
        fixed = tf.function(
            lambda values, n=count: communicator.all_reduce(values, f"fixed {n}"),
            input_signature=[tf.TensorSpec([count], tf.float64)],
        )
        for reduce in (fixed, any_size):
            total = reduce(tf.constant(vector(rank, count))).numpy()
            errors.append(float(np.max(np.abs(total - expected) / scale, initial=0.0)))
            if count * 8 <= MOST_BYTES:
                bits.append(hash(total.tobytes()))
    by_horovod = communicator.transport == communicator.name
    for dtype in OF_HOROVOD if by_horovod else DTYPES:
        mine = tf.cast(tf.range(100) + rank, dtype)
        total = communicator.all_reduce(mine, dtype)
        expected = sum((np.arange(100) + r).astype(mine.dtype.as_numpy_dtype) for r in range(size))
        assert np.array_equal(total.numpy(), expected), dtype
    nan = np.array([0x7FF8000000000000 + rank], np.uint64).view(np.float64)
    bits.append(hash(communicator.all_reduce(tf.constant(nan), "nan").numpy().tobytes()))
    denormal = communicator.all_reduce(tf.constant([5e-324], tf.float64), "denormal").numpy()
    return {
        "transport": communicator.transport,
        "error": max(errors),
        "bits": bits,
        "denormal": float(denormal[0] / 5e-324),
    }


if __name__ == "__main__":
    print(json.dumps(sums(syncbn.init("horovod"))))
