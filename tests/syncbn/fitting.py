"""`model.fit` of models with the layer, on every rank of a job."""

from typing import Any

import keras
import numpy as np

import syncbn
from syncbn.communicators import Communicator
from tests.syncbn import oracle

BATCHES, ROWS = 3, 4


def data(rank: int) -> np.ndarray:
    """The data of one rank: `BATCHES` batches of `ROWS` rows, in order."""
    generator = np.random.default_rng([77, rank])
    return generator.normal(size=(BATCHES * ROWS, 5)).astype("float32") + 3.0


def fit(communicator: Communicator) -> dict[str, Any]:
    """Fits nested, sequential and functional models with the layer and jit_compile="auto".

    The learning rate is zero, so that the exact moving statistics are known.
    """
    inner = keras.Sequential([keras.layers.BatchNormalization(), syncbn.SyncBatchNormalization()])
    inputs = keras.Input((5,))
    hidden = syncbn.SyncBatchNormalization(momentum=0.5, name="first")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(inner(hidden)))
    # The other layers differ between ranks: only the statistics are compared.
    optimizer = syncbn.train_independently(keras.optimizers.SGD(0.0))
    model.compile(optimizer, loss="mse", jit_compile="auto")
    x = data(communicator.rank)
    model.fit(x, np.zeros((len(x), 1)), batch_size=ROWS, epochs=1, shuffle=False, verbose=0)
    layer = model.get_layer("first")

    mean, variance = np.zeros(5), np.ones(5)
    shards = [data(rank) for rank in range(communicator.size)]
    for start in range(0, len(x), ROWS):
        joined = np.concatenate([shard[start : start + ROWS] for shard in shards])
        now = oracle.moments(joined)
        mean = oracle.move(mean, now.mean, 0.5)
        variance = oracle.move(variance, now.variance, 0.5)
    return {
        "jit": bool(layer.supports_jit or model.jit_compile),
        "mean": oracle.relative_error(layer.moving_mean.numpy(), mean),
        "variance": oracle.relative_error(layer.moving_variance.numpy(), variance),
        "moving": [v.numpy().tobytes().hex() for v in layer.non_trainable_variables],
    }
