"""Keras' layer and the synchronized one with equal weights, and a step of either."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from syncbn import SyncBatchNormalization

Stock = keras.layers.BatchNormalization


def pair(shape: tuple[int, ...], **arguments: Any) -> tuple[Any, Any]:
    """Keras' layer and the synchronized one with equal weights."""
    stock, ours = Stock(**arguments), SyncBatchNormalization(**arguments)
    generator = np.random.default_rng(0)
    for layer in (stock, ours):
        layer.build(shape)
    weights = [np.abs(generator.normal(size=w.shape)) + 0.5 for w in stock.weights]
    for layer in (stock, ours):
        layer.set_weights(weights)
    return stock, ours


def train(layer: Any, x: np.ndarray, dy: np.ndarray, **call: Any) -> list[np.ndarray]:
    """Outputs, dx and the gradients of the weights, for the loss Σ y·dy."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, **call)
    sources = [x, *(w.value for w in layer.trainable_weights)]
    gradients = tape.gradient(y, sources, output_gradients=tf.cast(dy, y.dtype))
    return [v.numpy() for v in (y, *gradients)]
