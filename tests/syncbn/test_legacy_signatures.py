"""The two TensorFlow 1 functions: the original parameters, and the effect of each."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn.legacy import batch_norm, batch_normalization, default_store
from tests.syncbn.legacy_calls import FUNCTIONS, images

pytestmark = pytest.mark.usefixtures("fresh_layers")

v1 = tf.compat.v1

# From the source files of TensorFlow 1.15.
CONTRIB = {
    "inputs": inspect.Parameter.empty,
    "decay": 0.999,
    "center": True,
    "scale": False,
    "epsilon": 0.001,
    "activation_fn": None,
    "param_initializers": None,
    "param_regularizers": None,
    "updates_collections": "update_ops",
    "is_training": True,
    "reuse": None,
    "variables_collections": None,
    "outputs_collections": None,
    "trainable": True,
    "batch_weights": None,
    "fused": None,
    "data_format": "NHWC",
    "zero_debias_moving_mean": False,
    "scope": None,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_decay": 0.99,
    "adjustment": None,
}
LAYERS = {
    "inputs": inspect.Parameter.empty,
    "axis": -1,
    "momentum": 0.99,
    "epsilon": 1e-3,
    "center": True,
    "scale": True,
    "beta_initializer": v1.zeros_initializer,
    "gamma_initializer": v1.ones_initializer,
    "moving_mean_initializer": v1.zeros_initializer,
    "moving_variance_initializer": v1.ones_initializer,
    "beta_regularizer": None,
    "gamma_regularizer": None,
    "beta_constraint": None,
    "gamma_constraint": None,
    "training": False,
    "trainable": True,
    "name": None,
    "reuse": None,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
    "fused": None,
    "virtual_batch_size": None,
    "adjustment": None,
}


@pytest.mark.parametrize(("name", "expected"), [("contrib", CONTRIB), ("layers", LAYERS)])
def test_parameters_order_and_defaults_are_the_old_ones(
    name: str, expected: dict[str, object]
) -> None:
    found = {
        parameter.name: parameter.default
        for parameter in inspect.signature(FUNCTIONS[name]).parameters.values()
    }
    assert list(found) == list(expected)
    for parameter, default in expected.items():
        if isinstance(default, type) and default is not inspect.Parameter.empty:
            assert isinstance(found[parameter], default)
        else:
            assert found[parameter] == default
            assert type(found[parameter]) is type(default)


def test_channels_second() -> None:
    x = images()
    expected = batch_norm(x, scope="last")
    first = np.moveaxis(x, -1, 1)
    ours = batch_norm(first, data_format="NCHW", scope="first")
    np.testing.assert_allclose(np.moveaxis(ours.numpy(), 1, -1), expected, 1e-5, 1e-5)
    same = batch_normalization(first, axis=[1], training=True, name="list")
    np.testing.assert_allclose(same, ours, 1e-5, 1e-5)


def test_every_contrib_parameter_reaches_the_layer() -> None:
    x = images(2)
    outputs = batch_norm(
        x,
        decay=0.8,
        center=True,
        scale=True,
        epsilon=0.1,
        activation_fn=tf.nn.relu,
        param_initializers={
            "beta": v1.constant_initializer(0.5),
            "gamma": v1.constant_initializer(2.0),
            "moving_mean": v1.constant_initializer(7.0),
            "moving_variance": v1.constant_initializer(9.0),
        },
        param_regularizers={"gamma": lambda w: tf.reduce_sum(w * 3.0), "beta": None},
        batch_weights=np.array([1, 0, 2, 1, 1, 0, 0, 0, 3, 1, 1, 1], "float32"),
        zero_debias_moving_mean=True,
        scope="bn",
        adjustment=lambda shape: (tf.constant(1.5), tf.constant(0.25)),
    )
    often = np.repeat(x.astype("float64"), [1, 0, 2, 1, 1, 0, 0, 0, 3, 1, 1, 1], axis=0)
    hat = (x - often.mean(0)) / np.sqrt(often.var(0) + 0.1) * 1.5 + 0.25
    np.testing.assert_allclose(outputs, np.maximum(hat * 2 + 0.5, 0), 1e-5, 1e-5)
    layer = default_store()["bn"]
    np.testing.assert_allclose(layer.moving_mean, often.mean(0), 1e-5)  # debiased
    np.testing.assert_allclose(layer.moving_variance, 9 * 0.8 + 0.2 * often.var(0), 1e-5)
    assert float(sum(default_store().losses)) == pytest.approx(18.0)


def test_every_layers_parameter_reaches_the_layer() -> None:
    options = {
        "axis": 1,
        "momentum": 0.7,
        "epsilon": 0.01,
        "center": True,
        "scale": True,
        "beta_initializer": "ones",
        "gamma_initializer": keras.initializers.Constant(3.0),
        "moving_mean_initializer": v1.random_uniform_initializer(1.0, 2.0),
        "moving_variance_initializer": lambda shape, dtype=None: tf.fill(shape, 4.0),
        "beta_regularizer": keras.regularizers.L2(0.5),
        "gamma_regularizer": lambda w: tf.reduce_sum(w),
        "beta_constraint": keras.constraints.NonNeg(),
        "gamma_constraint": lambda w: w,
        "renorm": True,
        "renorm_clipping": {"rmax": 2.0, "dmax": 1.0},
        "renorm_momentum": 0.6,
    }
    batch_normalization(images(3), training=True, name="bn", **options)
    layer = default_store()["bn"]
    for name, value in options.items():
        if not name.endswith("initializer") and not callable(value):
            assert getattr(layer, name) == value
    assert layer.beta_constraint is options["beta_constraint"]
    np.testing.assert_array_equal(layer.gamma, np.full(5, 3.0))
    np.testing.assert_array_equal(layer.beta, np.ones(5))
    assert float(sum(layer.losses)) == pytest.approx(2.5 + 15.0)
    ghost = batch_normalization(images(2), training=True, virtual_batch_size=4, name="ghost")
    halves = [
        batch_normalization(part, training=True, name=f"g{i}")
        for i, part in enumerate(np.split(images(2), 3))
    ]
    np.testing.assert_allclose(ghost, np.concatenate(halves), 1e-5, 1e-5)


def test_fused_lets_the_moving_variance_follow_the_unbiased_estimate() -> None:
    x = images()
    n = x.size / 3
    batch_norm(x, decay=0.0, fused=True, scope="fused")
    batch_norm(x, decay=0.0, scope="plain")
    fused, plain = (default_store()[s].moving_variance.numpy() for s in ("fused", "plain"))
    np.testing.assert_allclose(fused, plain * n / (n - 1), 1e-6)
