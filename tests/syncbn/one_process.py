"""A small model, and its weights after training in one process with all rows in each batch."""

import keras
import numpy as np
import tensorflow as tf


def regression_data() -> tuple[np.ndarray, np.ndarray]:
    """Seven rows of four features, and their targets."""
    features = np.random.default_rng(7).normal(size=(7, 4)).astype("float32")
    return features, (features @ np.array([[1.0], [-2.0], [0.5], [3.0]], "float32")).astype(
        "float32"
    )


def train_alone(
    optimizer: keras.optimizers.Optimizer, steps: int, scale: float = 1.0
) -> np.ndarray:
    """The weights after training in one process with all seven rows in each batch."""
    features, targets = regression_data()
    model = dense_model(1)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = scale * tf.reduce_mean(tf.square(model(features) - targets))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return flat_weights(model)


def dense_model(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)]
    )


def flat_weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])
