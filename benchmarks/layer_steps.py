"""The steps of `benchmarks.layer`: a chain of normalizations, forward and backward."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

import syncbn
from benchmarks.harness import rank
from syncbn.dispatch import BYTES_MOVED


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """TensorFlow's fused kernel, local, as in Keras 2; Keras 3 computes moments instead."""

    def call(self, inputs: tf.Tensor, training: bool = True) -> tf.Tensor:
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma.value, self.beta.value, epsilon=self.epsilon, is_training=True
        )
        for moving, target in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + target * (1 - self.momentum))
        return outputs


class Service(rank.TimingService):
    """Contenders: `ours`, `keras`, `keras synchronized`, `fused`."""

    def make(self, contender: str, case: dict[str, Any]) -> rank.Step:
        shape, depth = case["shape"], case["depth"]
        strategy = getattr(self.communicator, "strategy", tf.distribute.get_strategy())
        with strategy.scope():
            layers = [self._layer(contender) for _ in range(depth)]
            for layer in layers:
                layer.build((None, *shape[1:]))
        weights = [weight.value for layer in layers for weight in (layer.gamma, layer.beta)]
        random = np.random.default_rng(self.communicator.rank)
        inputs, upstream = (tf.constant(random.normal(size=shape), tf.float32) for _ in range(2))

        def chain(inputs: tf.Tensor, upstream: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = inputs
                for layer in layers:
                    outputs = layer(outputs, training=True)
            return tape.gradient(outputs, [inputs, *weights], output_gradients=upstream)

        if strategy.num_replicas_in_sync > 1:
            graph = tf.function(lambda *tensors: strategy.run(chain, args=tensors))
        else:
            graph = tf.function(chain)
        # On a GPU the call only queues the operations.
        wait = tf.test.experimental.sync_devices if tf.config.get_visible_devices("GPU") else None

        def step() -> None:
            graph(inputs, upstream)
            if wait is not None:
                wait()

        return step

    def copy_seconds(self, shape: list[int], times: int) -> float:
        """The median time of a copy of a float32 tensor of this shape, all ranks at once."""
        source = np.ones(shape, np.float32)
        target = np.empty_like(source)

        def copy() -> None:
            np.copyto(target, source)

        self._steps["copy"] = copy
        seconds = self.run("copy", times)
        self.forget("copy")
        return float(np.median(seconds))

    def passes(self) -> int:
        """The number of passes over the tensor, reads and writes counted equally."""
        return BYTES_MOVED.passes

    def transport(self) -> str:
        """A description of the transport of statistics."""
        transport = self.communicator.transport
        return transport if transport == self.communicator.name else f"by {transport}"

    def _layer(self, contender: str) -> keras.layers.BatchNormalization:
        if contender == "ours":
            return syncbn.SyncBatchNormalization(
                communicator=self.communicator if self.backend == "horovod-defaults" else "auto"
            )
        if contender == "fused":
            return FusedBatchNormalization()
        return keras.layers.BatchNormalization(synchronized=contender == "keras synchronized")
