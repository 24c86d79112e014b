"""A perceptron with two normalizations, its data, and the expected statistics."""

import keras
import numpy as np

from syncbn import SyncBatchNormalization
from tests.syncbn.models import shake

L = keras.layers
Values = dict[str, np.ndarray]


def perceptron(kind: type[keras.Layer] = SyncBatchNormalization, **options: object) -> keras.Model:
    inputs = keras.Input((3,))
    hidden = kind(name="first", **options)(L.Dense(4, name="d0")(inputs))
    hidden = L.Dropout(0.5)(L.ReLU()(hidden))
    outputs = kind(name="second", scale=False, **options)(L.Dense(5, name="d1")(hidden))
    return shake(keras.Model(inputs, outputs))


def rows(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, 3)) * [1, 5, 0.1] + [0, 50, 3]).astype("float32")


def oracle(model: keras.Model, inputs: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of the inputs of each normalization at inference, float64."""
    found = []
    values = inputs.astype("float64")
    for dense, name in (("d0", "first"), ("d1", "second")):
        kernel, bias = (v.numpy().astype("float64") for v in model.get_layer(dense).weights)
        values = values @ kernel + bias
        layer = model.get_layer(name)
        mean, variance = values.mean(0), values.var(0)
        found.append((mean, variance))
        values = (values - mean) / np.sqrt(variance + layer.epsilon)
        gamma = layer.gamma.numpy().astype("float64") if layer.scale else 1.0
        values = np.maximum(values * gamma + layer.beta.numpy(), 0.0)
    return found


def statistics(model: keras.Model) -> Values:
    return {
        variable.path: variable.numpy()
        for variable in model.non_trainable_variables
        if "seed" not in variable.path
    }


def assert_recomputed(model: keras.Model, inputs: np.ndarray) -> None:
    for name, (mean, variance) in zip(("first", "second"), oracle(model, inputs), strict=True):
        layer = model.get_layer(name)
        np.testing.assert_allclose(layer.moving_mean, mean, 2e-6, 2e-6)
        np.testing.assert_allclose(layer.moving_variance, variance, 5e-6)
