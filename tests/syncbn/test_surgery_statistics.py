"""Statistics recomputed over a data set, compared with float64 sums over the whole data set."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import SyncBatchNormalization, recompute_statistics
from tests.syncbn.models import Block, Subclassed, shake
from tests.syncbn.perceptron import assert_recomputed, oracle, perceptron, rows, statistics

L = keras.layers


@pytest.mark.parametrize("kind", [L.BatchNormalization, SyncBatchNormalization])
def test_two_layers_are_exact_and_nothing_else_changes(kind: type[keras.Layer]) -> None:
    model, inputs = perceptron(kind), rows(50)
    model.get_layer("first").trainable = False
    kept = [
        v.numpy() for v in [*model.get_layer("first").weights[:2], *model.get_layer("d1").weights]
    ]
    assert recompute_statistics(model, inputs) is model
    assert_recomputed(model, inputs)
    after = [
        v.numpy() for v in [*model.get_layer("first").weights[:2], *model.get_layer("d1").weights]
    ]
    assert all(np.array_equal(a, b) for a, b in zip(kept, after, strict=True))
    assert not model.get_layer("first").trainable
    assert "call" not in vars(model.get_layer("first"))
    assert not tf.config.functions_run_eagerly()


def test_far_from_zero_nothing_is_lost() -> None:
    inputs = (np.random.default_rng(1).normal(size=(4096, 3)) * 0.1 + 1e4).astype("float32")
    given = keras.Input((3,))
    model = keras.Model(given, L.BatchNormalization()(given))
    recompute_statistics(model, [inputs[:1000], inputs[1000:]])
    exact = inputs.astype("float64").var(0)
    np.testing.assert_allclose(model.layers[1].moving_variance, exact, 2e-6)


def test_renorm_debiasing_and_bessel_follow() -> None:
    inputs = rows(12)
    model = perceptron(renorm=True, zero_debias_moving_mean=True, bessel_correction=True)
    recompute_statistics(model, inputs)
    mean, variance = oracle(model, inputs)[0]
    layer = model.get_layer("first")
    np.testing.assert_allclose(layer.moving_variance, variance * 12 / 11, 5e-6)
    stddev = np.sqrt(variance * 12 / 11 + layer.epsilon)
    for tracked in (layer.moving_stddev, layer.renorm_stddev):
        np.testing.assert_allclose(tracked, stddev, 5e-6)
    np.testing.assert_allclose(layer.renorm_mean, mean, 2e-6, 2e-6)
    # Further training starts from these values, not from zero.
    layer(np.tile(mean, (4, 1)).astype("float32"), training=True)
    np.testing.assert_allclose(layer.moving_mean, mean, 1e-5, 1e-5)


def test_masks_of_the_model_count() -> None:
    inputs = np.random.default_rng(2).normal(size=(6, 5, 3)).astype("float32")
    inputs[2:, 3:] = 0.0  # masked
    given = keras.Input((5, 3))
    model = keras.Model(given, SyncBatchNormalization()(L.Masking()(given)))
    recompute_statistics(model, [inputs[:4], inputs[4:]])
    kept = inputs.astype("float64")[np.any(inputs != 0, axis=-1)]
    assert len(kept) == 22
    np.testing.assert_allclose(model.layers[-1].moving_mean, kept.mean(0), 1e-5, 1e-6)
    np.testing.assert_allclose(model.layers[-1].moving_variance, kept.var(0), 1e-5)


def test_frequency_weights_in_the_models_own_call_count() -> None:
    given, weights = keras.Input((3,)), keras.Input(())
    model = keras.Model([given, weights], SyncBatchNormalization()(given, batch_weights=weights))
    inputs, often = rows(8), np.array([1, 2, 0, 3, 1, 1, 4, 0], "float32")
    recompute_statistics(model, [((inputs, often),)])
    np.testing.assert_allclose(
        model.layers[-1].moving_variance, np.repeat(inputs, often.astype(int), 0).var(0), 1e-5
    )


class Compiled(keras.Model):
    """Its graph is traced before, and one of its layers is called with training=True."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = L.BatchNormalization(), L.BatchNormalization()

    @tf.function
    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return self.second(self.first(inputs, training=True) ** 3)


def test_layers_inside_a_traced_function_are_seen() -> None:
    model, inputs = Compiled(), rows(64)
    model(inputs)
    recompute_statistics(model, [inputs[:10], inputs[10:]])
    wide = inputs.astype("float64")
    np.testing.assert_allclose(model.first.moving_mean, wide.mean(0), 1e-6, 1e-6)
    hidden = ((wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-3)) ** 3
    np.testing.assert_allclose(model.second.moving_variance, hidden.var(0), 1e-4)


def test_subclassed_and_composite_models_reach_their_fixed_point() -> None:
    model = Subclassed()
    inputs = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    model(inputs)
    shake(model)
    recompute_statistics(model, [inputs[:15], inputs[15:]])
    hidden = model.listed[0](model.single(inputs)).numpy().astype("float64")
    np.testing.assert_allclose(model.listed[1].moving_mean, hidden.mean(0), 1e-5, 1e-6)
    np.testing.assert_allclose(model.listed[1].moving_variance, hidden.var(0), 1e-5)
    given = keras.Input((4,))
    block = keras.Model(given, Block(4)(given))
    once = statistics(recompute_statistics(block, [inputs]))
    again = statistics(recompute_statistics(block, [inputs]))
    for path, value in once.items():
        np.testing.assert_allclose(again[path], value, 1e-6, 1e-7)


def test_layer_called_several_times_counts_all_calls() -> None:
    one, two = keras.Input((3,)), keras.Input((3,))
    layer = SyncBatchNormalization()
    model = keras.Model([one, two], [layer(one), layer(two)])
    left, right = rows(10, 1), rows(10, 2)
    recompute_statistics(model, [((left, right),)])
    both = np.concatenate([left, right]).astype("float64")
    np.testing.assert_allclose(layer.moving_mean, both.mean(0), 1e-6, 1e-6)
    np.testing.assert_allclose(layer.moving_variance, both.var(0), 1e-5)


def test_half_precision_inputs_do_not_overflow() -> None:
    given = keras.Input((3,))
    model = keras.Model(given, SyncBatchNormalization(dtype="mixed_float16")(given))
    inputs = (rows(30) * 500).astype("float16").astype("float32")
    recompute_statistics(model, [inputs])
    np.testing.assert_allclose(
        model.layers[1].moving_variance, inputs.astype("float64").var(0), 1e-5
    )


def test_unused_layers_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = Subclassed()
    model.spare = L.BatchNormalization(name="spare")
    model.spare.build((None, 4))
    model(np.ones((2, 4), "float32"))
    recompute_statistics(model, [np.random.default_rng(0).normal(size=(9, 4)).astype("float32")])
    assert "never calls them: spare" in caplog.text
    assert np.all(model.spare.moving_variance.numpy() == 1.0)
