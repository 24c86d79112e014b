"""Files, configurations and exported graphs of Keras' layer and the synchronized one."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import SyncBatchNormalization, convert_sync_batchnorm, revert_sync_batchnorm
from tests.syncbn.graph_operations import communicating, operations_of_export
from tests.syncbn.model_comparison import bits, kinds
from tests.syncbn.models import branched, sequential, shake

L = keras.layers


def renormalized() -> keras.Model:
    return keras.Sequential(
        [keras.Input((3,)), L.Dense(4), L.BatchNormalization(renorm=True, axis=1)],
        name="renormalized",
    )


@pytest.fixture(params=[sequential, branched, renormalized], ids=lambda f: f.__name__)
def stock(request: pytest.FixtureRequest) -> keras.Model:
    return shake(request.param())


def test_keras_files_go_there_and_back_bit_for_bit(stock: keras.Model, tmp_path: Path) -> None:
    stock.save(tmp_path / "stock.keras")
    ours = convert_sync_batchnorm(keras.saving.load_model(tmp_path / "stock.keras"))
    ours.save(tmp_path / "ours.keras")
    loaded = keras.saving.load_model(tmp_path / "ours.keras")  # no custom_objects needed
    assert set(kinds(loaded)) == {SyncBatchNormalization}
    back = revert_sync_batchnorm(loaded)
    back.save(tmp_path / "back.keras")
    final = keras.saving.load_model(tmp_path / "back.keras")
    assert set(kinds(final)) == {L.BatchNormalization}
    assert bits(stock) == bits(ours) == bits(loaded) == bits(final)


def test_weight_files_fit_both_layers_bit_for_bit(stock: keras.Model, tmp_path: Path) -> None:
    file, file_back = tmp_path / "a.weights.h5", tmp_path / "b.weights.h5"
    stock.save_weights(file)
    empty = stock.__class__.from_config(stock.get_config())
    ours = convert_sync_batchnorm(empty)
    assert bits(ours) != bits(stock)
    ours.load_weights(file)
    ours.save_weights(file_back)
    empty.load_weights(file_back)
    assert bits(stock) == bits(ours) == bits(empty)


def test_weight_files_fit_a_model_with_both_layers(tmp_path: Path) -> None:
    def stack(*kinds: type[keras.Layer]) -> keras.Model:
        inner = [layer for kind in kinds for layer in (L.Dense(3), kind())]
        return keras.Sequential([keras.Input((3,)), *inner])

    stock = stack(L.BatchNormalization, L.BatchNormalization)
    shake(stock).save_weights(tmp_path / "a.weights.h5")
    for mixed in (
        stack(SyncBatchNormalization, L.BatchNormalization),
        stack(L.BatchNormalization, SyncBatchNormalization),
    ):
        mixed.load_weights(tmp_path / "a.weights.h5")
        assert bits(mixed) == bits(stock)


def test_the_representation_of_the_layer() -> None:
    # Its class has the name of Keras' layer, so that the weights files above fit.
    assert repr(SyncBatchNormalization(name="b")) == "<SyncBatchNormalization name=b, built=False>"
    assert "SyncBatchNormalization" in repr(SyncBatchNormalization)


def test_exports_predict_the_same_and_hold_no_communication(
    stock: keras.Model, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    source = stock.inputs if isinstance(stock, keras.Sequential) else stock.input
    inputs = keras.tree.map_structure(
        lambda tensor: random.normal(size=(2, *tensor.shape[1:])).astype("float32"), source
    )
    inputs = inputs[0] if isinstance(inputs, list) else inputs
    expected = keras.tree.flatten(stock(inputs, training=False))
    ours = convert_sync_batchnorm(stock)
    for name, model in (("ours", ours), ("back", revert_sync_batchnorm(ours))):
        model.export(tmp_path / name, verbose=False)
        assert communicating(operations_of_export(tmp_path / name)) == set()
        loaded = tf.saved_model.load(str(tmp_path / name))
        for ours_now, before in zip(
            keras.tree.flatten(loaded.serve(inputs)), expected, strict=True
        ):
            np.testing.assert_allclose(ours_now, before, 1e-5, 1e-6)


def test_a_configuration_of_keras_creates_the_layer() -> None:
    layer = L.BatchNormalization(axis=1, momentum=0.7, gamma_regularizer="l1", name="mine")
    ours = SyncBatchNormalization.from_config(layer.get_config())
    assert (ours.axis, ours.momentum, ours.name) == (1, 0.7, "mine")
    assert isinstance(ours.gamma_regularizer, keras.regularizers.L1)
    assert not ours.synchronized  # as configured; use convert_sync_batchnorm to synchronize
    back = L.BatchNormalization.from_config(
        {key: value for key, value in ours.get_config().items() if key in layer.get_config()}
    )
    assert back.get_config() == layer.get_config()


def test_the_configuration_round_trip() -> None:
    layer = SyncBatchNormalization(
        group_size=2, zero_debias_moving_mean=True, bessel_correction=True, activation="relu"
    )
    config = keras.saving.serialize_keras_object(layer)
    assert config["registered_name"] == "syncbn>SyncBatchNormalization"
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
