"""The steps of `benchmarks.options`: a chain of layers with one option, forward and backward."""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import syncbn
from benchmarks.harness import rank


@dataclass(frozen=True)
class Option:
    """One option of the layer.

    Attributes:
        ours: Arguments of `SyncBatchNormalization`.
        keras: Arguments of Keras' layer for the same; None if it has no such option.
        dtype: The dtype policy.
        call: `mask`, `batch_weights` or `residual`, if the option is an argument of the call.
        channels_first: Whether the inputs are (batch, C, ...).
        activation: The activation after Keras' layer, and after the addition of a residual.
        sequences: Whether to measure on sequences instead of images.
    """

    ours: dict[str, Any] = field(default_factory=dict)
    keras: dict[str, Any] | None = None
    dtype: str = "float32"
    call: str | None = None
    channels_first: bool = False
    activation: str | None = None
    sequences: bool = False


def _by_channel(shape: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.fill(shape[-1:], 1.5), tf.fill(shape[-1:], 0.25)


OPTIONS = {
    "`renorm`": Option({"renorm": True}, {"renorm": True}),
    "`virtual_batch_size=2`": Option({"virtual_batch_size": 2}),
    "`batch_weights`": Option(call="batch_weights"),
    "`mask`": Option(keras={}, call="mask", sequences=True),
    "`adjustment` by channel": Option({"adjustment": _by_channel}),
    "`zero_debias_moving_mean`": Option({"zero_debias_moving_mean": True}),
    "`bessel_correction`": Option({"bessel_correction": True}),
    '`activation="relu"`': Option({"activation": "relu"}, {}, activation="relu"),
    '`residual`, `activation="relu"`': Option(
        {"activation": "relu"}, {}, call="residual", activation="relu"
    ),
    "channels first": Option({"axis": 1}, {"axis": 1}, channels_first=True),
    "`mixed_bfloat16`": Option(keras={}, dtype="mixed_bfloat16"),
    "`mixed_float16`": Option(keras={}, dtype="mixed_float16"),
}


class Service(rank.TimingService):
    """Contenders: `ours`, `keras`; the case names the option, or `plain`."""

    def make(self, contender: str, case: dict[str, Any]) -> rank.Step:
        option = OPTIONS.get(case["option"], Option(keras={}))
        shape = case["shape"]
        if option.channels_first:
            shape = [shape[0], shape[-1], *shape[1:-1]]
        kind = syncbn.SyncBatchNormalization if contender == "ours" else self._keras
        arguments = option.ours if contender == "ours" else option.keras or {}
        layers = [kind(dtype=option.dtype, **arguments) for _ in range(case["depth"])]
        for layer in layers:
            layer.build((None, *shape[1:]))
        weights = [weight.value for layer in layers for weight in (layer.gamma, layer.beta)]
        follow = keras.activations.get(None if contender == "ours" else option.activation)
        random = np.random.default_rng(self.communicator.rank)
        dtype = layers[0].compute_dtype
        inputs, upstream = (tf.constant(random.normal(size=shape), dtype) for _ in range(2))
        call: dict[str, tf.Tensor] = {}
        if option.call == "mask":
            call["mask"] = tf.constant(random.random(shape[:-1]) > 0.3)
        if option.call == "batch_weights":
            call["batch_weights"] = tf.constant(random.uniform(0.5, 2.0, shape[0]), tf.float32)
        ours = contender == "ours"
        adds = option.call == "residual"

        def block(layer: Any, inputs: tf.Tensor, residual: tf.Tensor) -> tf.Tensor:
            if not adds:
                return follow(layer(inputs, training=True, **call))
            if ours:
                return layer(inputs, residual=residual, training=True)
            return follow(layer(inputs, training=True) + residual)

        @tf.function
        def chain(inputs: tf.Tensor, upstream: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = inputs
                for layer in layers:
                    outputs = block(layer, outputs, inputs)
            return tape.gradient(outputs, [inputs, *weights], output_gradients=upstream)

        return lambda: chain(inputs, upstream)

    _keras = keras.layers.BatchNormalization
