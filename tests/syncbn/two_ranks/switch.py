"""The TensorFlow 1 functions in one graph, with a training argument that is a tensor."""

from typing import Any

import numpy as np
import tensorflow as tf

from syncbn import legacy
from syncbn.communicators import Communicator
from syncbn.legacy import batch_norm, batch_normalization, default_store
from tests.syncbn.legacy_calls import images


def data() -> np.ndarray:
    return images(seed=5)


def run(communicator: Communicator) -> dict[str, Any]:
    rows = data()
    return behind_the_switch(rows[:3] if communicator.rank == 0 else rows[3:])


def behind_the_switch(rows: np.ndarray) -> dict[str, Any]:
    """Training, inference and training in one graph; the losses are local sums."""

    @tf.function(input_signature=[tf.TensorSpec([None, 5, 5, 3]), tf.TensorSpec([], tf.bool)])
    def step(x: tf.Tensor, phase: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            h = batch_norm(x, is_training=phase, scope="one", decay=0.5)
            h = batch_normalization(tf.sin(h), training=phase, name="two", momentum=0.5)
            mean, variance = legacy.moments(h * h, [0, 1, 2])
            y = tf.nn.batch_normalization(h * h, mean, variance, None, None, 1e-3)
            loss = tf.reduce_sum(y * tf.cos(y))
        return y, tape.gradient(loss, x)

    x = tf.constant(rows)
    first, gradient = step(x, tf.constant(True))
    step(x, tf.constant(False))
    second, _ = step(x, tf.constant(True))
    report = {"first": first, "gradient": gradient, "second": second}
    report |= {scope: default_store()[scope].moving_variance for scope in ("one", "two")}
    return {key: value.numpy().tolist() for key, value in report.items()}
