"""Models that cannot be copied are changed in place: subclassed and some functional ones."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import SyncBatchNormalization, convert_sync_batchnorm, revert_sync_batchnorm
from tests.syncbn.model_comparison import assert_bitwise, kinds, values
from tests.syncbn.models import (
    FunctionalSubclass,
    Subclassed,
    shake,
)

L = keras.layers


def test_regularizers_and_functions_without_a_name_are_kept() -> None:
    model = Subclassed()
    model.single.gamma_regularizer = penalty = lambda gamma: 0.5 * keras.ops.sum(gamma)
    model(np.zeros((2, 4), "float32"))
    convert_sync_batchnorm(model)
    assert model.single.gamma_regularizer is penalty
    assert model.single.gamma.regularizer is penalty
    assert float(sum(model.losses)) == pytest.approx(2.0)


def test_subclassed_model_is_changed_in_place() -> None:
    model = Subclassed()
    inputs = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    model(inputs)
    shake(model)
    expected, before = model(inputs, training=False), list(model.weights)
    names = [layer.name for layer in model._flatten_layers()]
    assert convert_sync_batchnorm(model) is model
    assert kinds(model) == [SyncBatchNormalization] * 8
    assert [layer.name for layer in model._flatten_layers()] == names
    assert [id(v) for v in model.weights] == [id(v) for v in before]
    holders = (model.single, model.listed[1], model.paired[1], model.named["one"])
    assert {type(layer) for layer in holders} == {SyncBatchNormalization}
    assert model.named["deeper"][0] is model.single
    assert isinstance(model.block.late, SyncBatchNormalization)
    np.testing.assert_allclose(model(inputs, training=False), expected, 1e-5, 1e-6)
    mean = model.single.moving_mean.numpy()
    model(inputs, training=True)
    assert not np.array_equal(model.single.moving_mean.numpy(), mean)
    assert revert_sync_batchnorm(model) is model
    assert kinds(model) == [L.BatchNormalization] * 8
    assert [id(v) for v in model.weights] == [id(v) for v in before]


def test_subclassed_model_trains_on_with_the_state_of_its_optimizer(tmp_path: Path) -> None:
    model = Subclassed()
    data = (np.random.default_rng(0).normal(size=(8, 4)).astype("float32"), np.ones((8, 4)))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(*data, verbose=0)
    convert_sync_batchnorm(model)
    moving = model.listed[1].moving_variance.numpy()
    model.fit(*data, verbose=0)  # traced again, with the new layers
    assert int(model.optimizer.iterations) == 2
    assert not np.array_equal(model.listed[1].moving_variance.numpy(), moving)
    saved = values(model)
    model.save_weights(tmp_path / "model.weights.h5")
    checkpoint = tf.train.Checkpoint(block=model.block).save(str(tmp_path / "checkpoint"))
    for variable in model.weights:
        variable.assign(variable * 0)
    tf.train.Checkpoint(block=model.block).restore(checkpoint).assert_consumed()
    assert np.any(model.block.late.moving_variance)
    model.load_weights(tmp_path / "model.weights.h5")
    assert_bitwise(values(model), saved)
    model.export(tmp_path / "exported", verbose=False)


class Unwritable(keras.layers.Layer):
    def __init__(self, function: Callable[[object], object]) -> None:
        super().__init__()
        self.function = function

    def call(self, inputs: object) -> object:
        return self.function(inputs)


def test_functional_model_that_cannot_be_copied_is_changed_in_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inputs = keras.Input((3,))
    hidden = L.BatchNormalization(name="b")(Unwritable(keras.ops.relu)(inputs))
    model = shake(keras.Model(inputs, L.Dense(1)(hidden)))
    expected = model(np.ones((2, 3), "float32"))
    assert convert_sync_batchnorm(model) is model
    assert "changed in place: layer 'unwritable' (Unwritable) cannot be rebuilt" in caplog.text
    assert isinstance(model.get_layer("b"), SyncBatchNormalization)
    np.testing.assert_allclose(model(np.ones((2, 3), "float32")), expected, 1e-5)


def test_functional_subclass_with_its_own_constructor_is_changed_in_place() -> None:
    model = shake(FunctionalSubclass(5))
    inputs = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    expected = model(inputs)
    assert convert_sync_batchnorm(model) is model
    assert isinstance(model.normalization, SyncBatchNormalization)
    assert model.get_layer("normalization") is model.normalization
    np.testing.assert_allclose(model(inputs), expected, 1e-5)
    config = model.get_config()  # the graph identifies its nodes by the new layer
    assert config is not None
    model.compile("sgd", "mse")
    model.fit(inputs, np.ones((6, 1)), verbose=0)
    assert model.steps >= 1
