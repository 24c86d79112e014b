"""`--model tests.unhurried:network`: trains as any network, but most of each step it only waits.

For tests that want a job to be under way while they look at something else: two cores serve all.
"""

import time
from typing import Any

import keras
import tensorflow as tf

_SECONDS = 0.02


class Pause(keras.layers.Layer):
    """Hands its inputs on, in training after a while."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training:
            return inputs
        waited = tf.numpy_function(_wait, [inputs], inputs.dtype)
        return tf.ensure_shape(waited, inputs.shape)


def _wait(inputs: Any) -> Any:
    time.sleep(_SECONDS)
    return inputs


def network(shape: tuple[int, ...], classes: int) -> keras.Model:
    """A classifier with three normalization layers."""
    inputs = keras.Input(shape)
    x = keras.layers.Flatten()(Pause()(inputs))
    for _ in range(3):
        x = keras.layers.Dense(64, use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(inputs, keras.layers.Dense(classes, dtype="float32")(x))
