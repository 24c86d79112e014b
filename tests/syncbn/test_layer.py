"""The layer in one process, compared with `keras.layers.BatchNormalization`."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import syncbn
from syncbn import SyncBatchNormalization
from tests.syncbn import oracle
from tests.syncbn.oracle import relative_error
from tests.syncbn.stock import Stock, pair, train


def test_it_is_a_keras_batch_normalization() -> None:
    layer = SyncBatchNormalization()
    assert isinstance(layer, Stock)
    layer.build((None, 3))
    assert [w.name for w in layer.weights] == ["gamma", "beta", "moving_mean", "moving_variance"]
    assert [w.name for w in layer.trainable_weights] == ["gamma", "beta"]


def test_every_argument_of_keras_with_its_default() -> None:
    stock = inspect.signature(Stock.__init__).parameters
    ours = inspect.signature(SyncBatchNormalization.__init__).parameters
    for name, parameter in stock.items():
        expected = True if name == "synchronized" else parameter.default
        assert ours[name].default == expected, name
        assert list(ours).index(name) == list(stock).index(name) or name == "kwargs"


def test_config_is_that_of_keras_and_ours() -> None:
    stock = Stock(name="bn").get_config()
    ours = SyncBatchNormalization(name="bn").get_config()
    assert {**ours, **stock} == {**ours, "synchronized": False}
    assert {name: ours[name] for name in ours.keys() - stock.keys()} == {
        "communicator": "auto",
        "group_size": None,
        "virtual_batch_size": None,
        "adjustment": None,
        "zero_debias_moving_mean": False,
        "bessel_correction": False,
        "activation": "linear",
    }


@keras.saving.register_keras_serializable(package="tests")
def shake(shape: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.ones([shape[0], 1]) * 1.5, tf.zeros([shape[0], 1]) + 0.25


def test_config_round_trip() -> None:
    layer = SyncBatchNormalization(
        axis=1,
        momentum=0.8,
        epsilon=1e-4,
        gamma_regularizer="l2",
        beta_constraint="non_neg",
        renorm=True,
        renorm_clipping={"rmax": 2.0, "dmax": 1.0},
        communicator=syncbn.communicator(),
        group_size=4,
        adjustment=shake,
        zero_debias_moving_mean=True,
        bessel_correction=True,
        activation="gelu",
        name="bn",
        dtype="mixed_bfloat16",
    )
    again = SyncBatchNormalization.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.adjustment is shake
    assert again.activation is keras.activations.gelu
    assert again.communicator == "local"


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((6, 3), -1), ((4, 5, 3), -1), ((4, 3, 5), 1), ((2, 4, 4, 3), 3), ((2, 3, 2, 4, 3), -1)],
)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_training_as_stock(shape: tuple[int, ...], axis: int, center: bool, scale: bool) -> None:
    stock, ours = pair(shape, axis=axis, center=center, scale=scale, momentum=0.9)
    generator = np.random.default_rng(1)
    for _ in range(3):
        x = generator.normal(size=shape).astype("float32") + 1.0
        dy = generator.normal(size=shape).astype("float32")
        results = (train(stock, x, dy), train(ours, x, dy))
        for expected, got in zip(*results, strict=True):
            assert relative_error(got, expected) < 2e-6
    for expected, got in zip(stock.weights, ours.weights, strict=True):
        assert relative_error(got.numpy(), expected.numpy()) < 2e-6


@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("call", [{"training": False}, {}])
def test_inference_as_stock(dtype: str, call: dict[str, bool]) -> None:
    stock, ours = pair((5, 4, 3), dtype=dtype)
    x = np.random.default_rng(2).normal(size=(5, 4, 3)).astype("float32")
    expected, got = stock(x, **call), ours(x, **call)
    assert got.dtype == expected.dtype
    tolerance = {"float32": 1e-6, "float64": 1e-14}.get(dtype, 1e-2)
    assert relative_error(tf.cast(got, "float64"), tf.cast(expected, "float64")) < tolerance


@pytest.mark.parametrize("clipping", [None, {"rmax": 1.2, "rmin": 0.9, "dmax": 0.3}])
def test_renorm_as_stock(clipping: dict[str, float] | None) -> None:
    stock, ours = pair(
        (8, 3), renorm=True, renorm_clipping=clipping, renorm_momentum=0.7, momentum=0.9
    )
    assert [w.name for w in ours.weights] == [w.name for w in stock.weights]
    generator = np.random.default_rng(4)
    for _ in range(3):
        x, dy = generator.normal(size=(2, 8, 3)).astype("float32") * 2.0
        results = (train(stock, x, dy), train(ours, x, dy))
        for expected, got in zip(*results, strict=True):
            assert relative_error(got, expected) < 5e-6
    for expected, got in zip(stock.weights, ours.weights, strict=True):
        assert relative_error(got.numpy(), expected.numpy()) < 2e-6


def test_regularizers_and_constraints_reach_the_weights() -> None:
    layer = SyncBatchNormalization(
        gamma_regularizer="l2", beta_regularizer="l1", gamma_constraint="non_neg"
    )
    layer.build((None, 3))
    layer(np.ones((4, 3), "float32"), training=True)
    assert len(layer.losses) == 2
    assert isinstance(layer.gamma.constraint, keras.constraints.NonNeg)


def test_frozen_is_inference() -> None:
    layer = SyncBatchNormalization()
    layer.build((None, 3))
    layer.trainable = False
    x = np.random.default_rng(9).normal(size=(5, 3)).astype("float32") + 4.0
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(3))
    assert layer.trainable_weights == []


@pytest.mark.parametrize("adjusted", [False, True])
def test_adjustment_acts_in_training_only(adjusted: bool) -> None:
    layer = SyncBatchNormalization(adjustment=shake if adjusted else None)
    plain = SyncBatchNormalization()
    x = np.random.default_rng(10).normal(size=(5, 3)).astype("float32")
    expected = plain(x, training=True).numpy()
    expected = expected * 1.5 + 0.25 if adjusted else expected
    assert relative_error(layer(x, training=True), expected) < 1e-6
    np.testing.assert_array_equal(layer(x), plain(x))


def test_second_derivatives_are_refused_not_wrong() -> None:
    # A gradient penalty needs the derivative of the backward collective.
    layer = SyncBatchNormalization()
    x = tf.constant(np.random.default_rng(11).normal(size=(5, 3)), tf.float32)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) ** 3)
        slope = inner.gradient(loss, x)
        penalty = tf.reduce_sum(slope**2)
    with pytest.raises(LookupError, match="second derivative"):
        outer.gradient(penalty, x)


def test_an_outlier_in_the_first_row_affects_no_sum() -> None:
    """The pivot of the sums is near the data, not the first value."""
    generator = np.random.default_rng(12)
    x = generator.normal(size=(50_000, 4)).astype("float32") + 3.0
    x[0] = 1e6
    layer = SyncBatchNormalization(momentum=0.0)
    layer(x, training=True)
    exact = oracle.moments(x)
    assert relative_error(layer.moving_mean.numpy(), exact.mean) < 2e-7
    assert relative_error(layer.moving_variance.numpy(), exact.variance) < 2e-7


def test_an_unbiased_variance_of_one_row_is_finite() -> None:
    layer = SyncBatchNormalization(momentum=0.5, bessel_correction=True, renorm=True)
    layer(np.ones((1, 3), "float32"), training=True)
    assert all(np.isfinite(weight.numpy()).all() for weight in layer.weights)


@pytest.mark.parametrize("debias", [False, True])
def test_channels_without_samples_keep_their_statistics(debias: bool) -> None:
    layer = SyncBatchNormalization(
        momentum=0.5, zero_debias_moving_mean=debias, moving_mean_initializer="ones"
    )
    x = np.full((2, 3, 4), 5.0, "float32")
    layer.build(x.shape)
    for _ in range(2):  # before and after the first batch with samples
        before = [weight.numpy() for weight in layer.weights]
        layer(x + 1.0, training=True, mask=np.zeros((2, 3), bool))
        for weight, value in zip(layer.weights, before, strict=True):
            np.testing.assert_array_equal(weight, value, err_msg=weight.path)
        layer(x, training=True)


def test_renorm_bounds_the_deviation_by_epsilon() -> None:
    layer = SyncBatchNormalization(renorm=True, renorm_momentum=0.0, epsilon=1e-3)
    layer.build((None, 3))
    layer.renorm_stddev.assign(np.zeros(3))
    x = np.random.default_rng(13).normal(size=(64, 3)).astype("float32")
    # r = σ/√ε and d = μ/√ε undo the normalization by σ: the result is x/√ε.
    assert relative_error(layer(x, training=True), x / np.sqrt(1e-3)) < 1e-5
