"""The layer in one process, beside `keras.layers.BatchNormalization`: same names, same numbers."""

import inspect
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import syncbn
from syncbn import SyncBatchNormalization
from tests.syncbn.oracle import relative_error

Stock = keras.layers.BatchNormalization


def pair(shape: tuple[int, ...], **arguments: Any) -> tuple[Any, Any]:
    """The stock layer and ours with equal weights."""
    stock, ours = Stock(**arguments), SyncBatchNormalization(**arguments)
    generator = np.random.default_rng(0)
    for layer in (stock, ours):
        layer.build(shape)
    weights = [np.abs(generator.normal(size=w.shape)) + 0.5 for w in stock.weights]
    for layer in (stock, ours):
        layer.set_weights(weights)
    return stock, ours


def train(layer: Any, x: np.ndarray, dy: np.ndarray, **call: Any) -> list[np.ndarray]:
    """Outputs, dx and the gradients of the weights, for the loss Σ y·dy."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, **call)
    sources = [x, *(w.value for w in layer.trainable_weights)]
    gradients = tape.gradient(y, sources, output_gradients=tf.cast(dy, y.dtype))
    return [v.numpy() for v in (y, *gradients)]


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


def test_mask_as_stock() -> None:
    stock, ours = pair((4, 6, 3), momentum=0.5)
    generator = np.random.default_rng(3)
    x, dy = generator.normal(size=(2, 4, 6, 3)).astype("float32")
    mask = generator.uniform(size=(4, 6)) > 0.3
    results = (train(stock, x, dy, mask=mask), train(ours, x, dy, mask=mask))
    for expected, got in zip(*results, strict=True):
        assert relative_error(got, expected) < 2e-6
    for expected, got in zip(stock.weights, ours.weights, strict=True):
        assert relative_error(got.numpy(), expected.numpy()) < 2e-6


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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"zero_debias_moving_mean": True, "renorm": True}, {"virtual_batch_size": 2}],
    ids=str,
)
def test_half_precision_policies(dtype: str, mixed: bool, arguments: dict[str, Any]) -> None:
    layer = SyncBatchNormalization(dtype=f"mixed_{dtype}" if mixed else dtype, **arguments)
    x = tf.cast(np.random.default_rng(5).normal(size=(8, 3)), dtype)
    y, dx, dgamma, dbeta = train(layer, x, np.ones((8, 3)))
    assert {tf.as_dtype(v.dtype).name for v in (y, dx)} == {dtype}
    expected = "float32" if mixed else dtype
    assert {tf.as_dtype(v.dtype).name for v in (dgamma, dbeta)} == {expected}
    assert {w.dtype for w in layer.weights} == {expected}


@pytest.mark.parametrize("masked", [True, False])
def test_large_half_precision_values_do_not_overflow(masked: bool) -> None:
    # Their sum exceeds 65504 at the second row, their squares at once.
    generator = np.random.default_rng(6)
    x = (generator.uniform(0.5, 1.0, size=(64, 4, 3)) * 60000).astype("float16")
    layer = SyncBatchNormalization(dtype="mixed_float16", momentum=0.0)
    call = {"mask": np.ones((64, 4), bool)} if masked else {}
    y, dx, dgamma, _ = train(layer, x, np.ones(x.shape), **call)
    wide = x.astype("float64")
    assert np.all(np.isfinite(np.concatenate([v.ravel() for v in (y, dx, dgamma)])))
    assert relative_error(layer.moving_mean.numpy(), wide.mean((0, 1))) < 2e-6
    assert relative_error(layer.moving_variance.numpy(), wide.var((0, 1))) < 2e-6


def test_weights_keep_their_precision_in_half_precision_layers() -> None:
    # Keras casts every float argument to the compute dtype: float16 cannot hold 0.1 or 100001.
    generator = np.random.default_rng(7)
    x = generator.normal(size=(6, 3)).astype("float16")
    weights = np.array([0.1, 0.3, 1.7, 100001.0, 54321.5, 70000.25], "float32")
    layer = SyncBatchNormalization(dtype="mixed_float16", momentum=0.0)
    layer(x, training=True, batch_weights=weights)
    exact = np.average(x.astype("float64"), axis=0, weights=weights)
    assert relative_error(layer.moving_mean.numpy(), exact) < 2e-6


def test_a_mask_of_an_earlier_layer_counts_beside_weights() -> None:
    tokens = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [1, 1, 1, 1]])
    embedding = keras.layers.Embedding(5, 3, mask_zero=True)
    layers = [SyncBatchNormalization(momentum=0.0) for _ in range(3)]
    hidden = embedding(tokens)
    layers[0](hidden, training=True, mask=tokens != 0)
    layers[1](hidden, training=True)
    layers[2](hidden, training=True, batch_weights=np.ones(3, "float32"))
    for layer in layers[1:]:
        np.testing.assert_array_equal(layer.moving_mean, layers[0].moving_mean)
        np.testing.assert_array_equal(layer.moving_variance, layers[0].moving_variance)


def test_integer_weights_and_numeric_masks() -> None:
    generator = np.random.default_rng(8)
    x = generator.normal(size=(4, 2, 3)).astype("float32")
    repeated = np.repeat(x, [1, 3, 0, 2], axis=0)
    weighted, plain = (SyncBatchNormalization(momentum=0.0) for _ in range(2))
    weighted(x, training=True, batch_weights=np.array([1, 3, 0, 2]))
    plain(repeated, training=True)
    assert relative_error(weighted.moving_variance.numpy(), plain.moving_variance.numpy()) < 1e-6
    masks = [np.array([[1, 0]] * 4, kind) for kind in ("bool", "int32", "float32")]
    means = []
    for mask in masks:
        layer = SyncBatchNormalization(momentum=0.0)
        layer(x, training=True, mask=mask)
        means.append(layer.moving_mean.numpy())
    np.testing.assert_array_equal(means[1], means[0])
    np.testing.assert_array_equal(means[2], means[0])


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
    # A gradient penalty would need the derivative of the backward collective.
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


def test_weights_and_masks_in_a_functional_model() -> None:
    generator = np.random.default_rng(12)
    tokens = generator.integers(0, 4, size=(6, 5))
    weights = generator.uniform(0.5, 2.0, size=6).astype("float32")
    keras.utils.set_random_seed(0)
    ids, per_sample = keras.Input((5,), dtype="int32"), keras.Input((), name="weights")
    embedding = keras.layers.Embedding(4, 3, mask_zero=True)
    layer = SyncBatchNormalization(momentum=0.0)
    outputs = layer(embedding(ids), batch_weights=per_sample)
    model = keras.Model([ids, per_sample], outputs)
    model([tokens, weights], training=True)
    alone = SyncBatchNormalization(momentum=0.0)
    alone(embedding(tokens), training=True, mask=tokens != 0, batch_weights=weights)
    np.testing.assert_array_equal(layer.moving_mean, alone.moving_mean)
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again([tokens, weights]), model([tokens, weights]))
