"""The collectives of a training step, measured while one rank is late."""

import time
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from syncbn import DistributedOptimizer, SyncBatchNormalization, telemetry
from syncbn.communicators import Communicator

LATE_SECONDS = 0.3


def run(communicator: Communicator) -> dict[str, Any]:
    with mock.patch.multiple(telemetry, _watching=False, _buffer=None):
        return _watched(communicator)


def _watched(communicator: Communicator) -> dict[str, Any]:
    telemetry.watch()
    keras.utils.set_random_seed(0)
    norm = SyncBatchNormalization(name="measured")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), norm])
    model.add(keras.layers.Dense(2))
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.1))
    optimizer.build(model.trainable_variables)

    @tf.function(autograph=False)
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x, training=True) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return tf.linalg.global_norm(gradients)

    x = tf.constant(np.random.default_rng(communicator.rank).normal(size=(16, 4)), tf.float32)
    step(x)
    telemetry.collect()
    begun = time.time()
    if communicator.rank == 1:
        time.sleep(LATE_SECONDS)  # rank 0 waits for this rank in its first collective
    step(x)
    spans, numbers = telemetry.collect()
    again, _ = telemetry.collect()
    telemetry.all_reduce(communicator, tf.ones([10], tf.float64), "eager", "other")
    eager, _ = telemetry.collect()
    return {
        "spans": [[s.kind, s.start - begun, s.seconds, s.bytes] for s in spans],
        "numbers": numbers,
        "again": len(again),
        "eager": [[s.kind, s.bytes] for s in eager],
        "parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
    }
