"""An activation in the layer, compared with the same activation after it."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import SyncBatchNormalization
from tests.syncbn.layer_options import OPTIONS

RECTIFIERS = ["relu", "relu6", "leaky_relu"]


def step(
    activation: str, behind: str, dtype: str, option: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Outputs and gradients of one step; `activation` is in the layer, `behind` after it."""
    generator = np.random.default_rng(3)
    shape = (6, 5, 4, 3)
    x = tf.constant(generator.normal(2.0, 3.0, size=shape), dtype)
    upstream = tf.constant(generator.normal(size=shape), dtype)
    options = OPTIONS[option]
    channels = shape[options.get("axis", -1)]
    layer = SyncBatchNormalization(activation=activation, dtype=dtype, **options)
    layer.build(shape)
    layer.gamma.assign(generator.uniform(2.0, 6.0, channels))
    layer.beta.assign(generator.normal(size=channels))
    call: dict[str, Any] = {}
    if option == "mask":
        call["mask"] = tf.constant(generator.random(shape[:-1]) > 0.4)
    if option == "weights":
        call["batch_weights"] = tf.constant([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = keras.activations.get(behind)(layer(x, training=True, **call))
    sources = [x, layer.gamma.value, layer.beta.value]
    gradients = tape.gradient(y, sources, output_gradients=upstream)
    return np.asarray(y, "float64"), [np.asarray(g, "float64") for g in gradients]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", RECTIFIERS)
def test_it_is_the_activation_behind_the_layer(activation: str, dtype: str, option: str) -> None:
    inside, gradients = step(activation, "linear", dtype, option)
    behind, expected = step("linear", activation, dtype, option)
    assert (inside < 1e-9).any(), "nothing is rectified"
    # The slope of TensorFlow's leaky ReLU is float32 for all dtypes.
    rounded = activation == "leaky_relu" and dtype == "float64"
    np.testing.assert_allclose(inside, behind, rtol=2e-8 if rounded else 0)
    tolerance = 2e-6 if dtype == "float32" else 2e-8 if rounded else 1e-12
    for ours, theirs in zip(gradients, expected, strict=True):
        assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(dtype: str) -> None:
    for activation in RECTIFIERS:
        inside, _ = step(activation, "linear", dtype, "plain")
        exact, _ = step(activation, "linear", "float64", "plain")
        unit = 2.0**-10 if dtype == "float16" else 2.0**-7
        assert np.abs(inside - exact).max() <= 2 * unit * np.abs(exact).max()


def test_nan_stays_nan() -> None:
    x = tf.constant([[1.0], [2.0], [float("nan")]])
    for activation in RECTIFIERS:
        assert np.isnan(SyncBatchNormalization(activation=activation)(x, training=True)).all()


def test_other_activations_follow_the_layer() -> None:
    inside, gradients = step("gelu", "linear", "float32", "plain")
    behind, expected = step("linear", "gelu", "float32", "plain")
    np.testing.assert_array_equal(inside, behind)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
