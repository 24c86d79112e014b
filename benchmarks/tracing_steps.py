"""The steps of `benchmarks.startup` in one process: tracing a chain of normalizations."""

from typing import Any

import keras
import tensorflow as tf

import syncbn
from benchmarks.harness import rank

LAYERS = {"ours": syncbn.SyncBatchNormalization, "keras": keras.layers.BatchNormalization}


class Service(rank.TimingService):
    """Contenders: those of LAYERS. A step creates a graph, forward and backward."""

    def make(self, contender: str, case: dict[str, Any]) -> rank.Step:
        layers = [LAYERS[contender]() for _ in range(case["depth"])]
        for layer in layers:
            layer.build((None, 8, 8, 64))
        weights = [weight.value for layer in layers for weight in layer.trainable_variables]

        def chain(inputs: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                outputs = inputs
                for layer in layers:
                    outputs = layer(outputs, training=True)
            return tape.gradient(outputs, weights)

        signature = tf.TensorSpec((None, 8, 8, 64), tf.float32)
        return lambda: tf.function(chain).get_concrete_function(signature)
