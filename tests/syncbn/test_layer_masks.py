"""Masks and frequency weights of the layer in one process, from arguments or earlier layers."""

import keras
import numpy as np

from syncbn import SyncBatchNormalization
from tests.syncbn.oracle import relative_error
from tests.syncbn.stock import pair, train


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
