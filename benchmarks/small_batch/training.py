"""Trains the runs of one group, all ranks in one process.

Ranks differ only in their part of the batch and their local statistics: gradients are means over
the global batch. So the global batch runs through one graph, in which synchronized normalization
uses the whole batch, and local normalization the block of each rank.
tests/benchmarks/test_small_batch.py checks that this equals real ranks under mpirun; it takes a
fifth of their time.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

from benchmarks.small_batch.plan import Group, Plan, Result, learning_rates, sample_numbers
from launcher.train.environment import load_tensorflow

load_tensorflow()

import keras  # noqa: E402 - after TensorFlow's threads are configured
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import syncbn  # noqa: E402
from launcher.train.data import DataSet, Examples, load_dataset  # noqa: E402

# Filters and stride: 8x8, 4x4, 2x2, and finally one value per image and channel, as in the image
# pooling of a segmentation network or in a projection head.
_CONVOLUTIONS = ((16, 1), (32, 2), (64, 2), (64, 2))

Arrays = tuple[np.ndarray, np.ndarray]

# Each group has its own graph, which TensorFlow would report as excessive retracing.
tf.get_logger().setLevel("ERROR")


class BlockNormalization(keras.layers.BatchNormalization):
    """Local batch normalization on `world` ranks: each block of the batch belongs to one rank.

    The moving statistics are those of rank 0, which saves the model.
    """

    def __init__(self, world: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._world = world

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: None = None) -> tf.Tensor:
        if not training:
            return super().call(inputs, training=False)
        blocks = tf.reshape(inputs, [self._world, -1, *inputs.shape[1:]])
        mean, variance = tf.nn.moments(blocks, axes=[1, 2, 3], keepdims=True)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            target = tf.reshape(batch[0], [-1])
            moving.assign(moving * self.momentum + target * (1.0 - self.momentum))
        outputs = tf.nn.batch_normalization(
            blocks, mean, variance, self.beta.value, self.gamma.value, self.epsilon
        )
        return tf.reshape(outputs, tf.shape(inputs))


def train_group(plan: Plan, group: Group) -> list[Result]:
    """Trains and tests every sharding and seed of a group."""
    data = load_data(plan.held_out)
    train, test = arrays(data.train), arrays(data.validation)
    model = fresh_model(data, group, seed=0)
    optimizer = make_optimizer(model)
    steps = compiled_steps(model, optimizer, train)
    results = []
    for run in group.runs(plan.seeds):
        model.set_weights(fresh_model(data, group, run.seed).get_weights())
        for variable in optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        numbers = sample_numbers(run, train[1], plan.samples)
        steps(numbers.reshape(len(numbers), -1), learning_rates(plan, run))
        on_train, on_test = _accuracy(model, train), _accuracy(model, test)
        recomputed = on_test
        if group.norm != "none":
            syncbn.recompute_statistics(model, [train[0]])
            recomputed = _accuracy(model, test)
        results.append(
            Result(
                **asdict(run),
                train_accuracy=on_train,
                test_accuracy=on_test,
                recomputed_accuracy=recomputed,
            )
        )
    return results


@cache
def load_data(held_out: float) -> DataSet:
    """The digits data set of `python -m launcher.train`."""
    return load_dataset("digits", validation_part=held_out)


def arrays(part: Examples) -> Arrays:
    """All features and labels."""
    return part.read(np.arange(len(part)))


def fresh_model(data: DataSet, group: Group, seed: int) -> keras.Model:
    """The network of the study for all ranks of a group in one process."""

    def norm(name: str) -> keras.layers.Layer:
        if group.norm == "none":
            return keras.layers.Identity(name=name)
        if group.norm == "local":
            return BlockNormalization(group.world, momentum=group.momentum, name=name)
        return syncbn.SyncBatchNormalization(momentum=group.momentum, name=name)

    return build_model(data, group, seed, norm)


def build_model(
    data: DataSet, group: Group, seed: int, norm: Callable[[str], keras.layers.Layer]
) -> keras.Model:
    """Four convolutions, each followed by the layer `norm(name)`, and logits.

    The kernels depend on the seed only.
    """
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input(data.shape)
    for index, (filters, stride) in enumerate(_CONVOLUTIONS, start=1):
        x = keras.layers.Conv2D(
            filters,
            kernel_size=3,
            strides=stride,
            padding="same",
            use_bias=group.norm == "none",
            kernel_initializer="he_normal",
        )(x)
        x = keras.layers.ReLU()(norm(f"norm{index}")(x))
    return keras.Model(inputs, keras.layers.Dense(data.classes)(keras.layers.Flatten()(x)))


def make_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """SGD with Nesterov momentum, built; its learning rate is set in every step."""
    optimizer = keras.optimizers.SGD(momentum=0.9, nesterov=True)
    optimizer.build(model.trainable_variables)
    return optimizer


def compiled_steps(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, train: Arrays
) -> Callable[[np.ndarray, np.ndarray], None]:
    """A graph of a whole training, called with sample numbers (steps, rows) and rates (steps,)."""
    features, labels = (tf.constant(array) for array in train)

    @tf.function(reduce_retracing=True)
    def steps(numbers: tf.Tensor, rates: tf.Tensor) -> None:
        for step in tf.range(tf.shape(rates)[0]):
            optimizer.learning_rate.assign(rates[step])
            rows = numbers[step]
            with tf.GradientTape() as tape:
                logits = model(tf.gather(features, rows), training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                    tf.gather(labels, rows), logits
                )
                loss = tf.reduce_mean(losses)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    return lambda numbers, rates: steps(tf.constant(numbers), tf.constant(rates))


def _accuracy(model: keras.Model, part: Arrays) -> float:
    logits = model(part[0], training=False)
    return float(np.mean(np.argmax(logits, axis=-1) == part[1]))
