"""Common styles of Keras models, and the rows of each rank."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

import syncbn

STEPS, ROWS = 4, 6


def rows(rank: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng([5, rank])
    x = generator.normal(size=(STEPS * ROWS, 4)).astype("float32") + rank
    return x, (x.sum(axis=1, keepdims=True) > 2 * rank).astype("float32")


def built() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="relu"),
            syncbn.SyncBatchNormalization(),
            keras.layers.Dense(1),
        ]
    )


def unbuilt() -> keras.Model:
    return keras.Sequential(
        [
            keras.layers.Dense(5, activation="relu"),
            syncbn.SyncBatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1),
        ]
    )


def without_norm() -> keras.Model:
    return keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(1)])


def functional() -> keras.Model:
    inputs = keras.Input((4,))
    hidden = syncbn.SyncBatchNormalization(activation="relu")(keras.layers.Dense(5)(inputs))
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Add()([hidden, hidden])))


class Block(keras.layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(5)
        self.norm = syncbn.SyncBatchNormalization()

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return tf.nn.relu(self.norm(self.dense(inputs), training=training))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(), Block()]
        self.head = keras.layers.Dense(1)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        for block in self.blocks:
            inputs = block(inputs, training=training)
        return self.head(inputs)


class Numbers(Subclassed):
    """Its step reads values, so it cannot be traced."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        assert np.isfinite(inputs.numpy()).all()
        return super().call(inputs, training=training)


class Embedded(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.table = keras.layers.Embedding(7, 4, mask_zero=True)
        self.lstm = keras.layers.LSTM(3)
        self.norm = syncbn.SyncBatchNormalization()
        self.head = keras.layers.Dense(1)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        words = tf.cast(tf.clip_by_value(tf.abs(inputs) * 2, 0, 6), tf.int32)
        return self.head(self.norm(self.lstm(self.table(words)), training=training))


class Pair(keras.Model):
    """Two networks and two optimizers in a custom step, as in adversarial models."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = unbuilt(), without_norm()

    def compile(self, first: Any, second: Any, **options: Any) -> None:
        super().compile(**options)
        self.first, self.second = first, second

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        for network, optimizer in ((self.one, self.first), (self.other, self.second)):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(network(x, training=True) - y))
            weights = network.trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


class OwnStep(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.network = unbuilt()

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.network(inputs, training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        weights = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"loss": loss}
