"""The layer that a call uses: scopes, numbered names, stores and models."""

import logging
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn.legacy import LayerStore, batch_norm, batch_normalization, default_store, store
from tests.syncbn.legacy_calls import images

pytestmark = pytest.mark.usefixtures("fresh_layers")

v1 = tf.compat.v1


def test_scopes_find_their_layers() -> None:
    x = images()
    batch_norm(x, scope="bn")
    with v1.variable_scope("tower"):
        batch_norm(x, scope="bn")
        with v1.variable_scope("deep") as scope:
            batch_normalization(x, name="bn")
    batch_norm(x, scope="bn", reuse=True)
    batch_norm(x, scope="bn", reuse=v1.AUTO_REUSE)
    batch_norm(x, scope=scope)
    assert list(default_store().named) == ["bn", "tower/bn", "tower/deep/bn", "tower/deep"]


def test_unnamed_layers_are_counted_and_explained_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        batch_norm(images())
        batch_normalization(images())
    assert list(default_store().named) == [
        "BatchNorm",
        "batch_normalization",
        "BatchNorm_1",
        "batch_normalization_1",
    ]
    assert caplog.text.count("gets new weights with every call") == 1


def test_counted_names_step_over_given_ones() -> None:
    batch_norm(images(), scope="BatchNorm")
    batch_norm(images())
    with LayerStore() as layers:
        batch_norm(images(), scope="BatchNorm")
        batch_norm(images())
        with layers:  # still the same pass
            batch_norm(images())
    assert list(default_store().named) == ["BatchNorm", "BatchNorm_1"]
    assert list(layers.named) == ["BatchNorm", "BatchNorm_1", "BatchNorm_2"]


def test_collections_are_accepted_and_explained_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        batch_norm(
            images(), scope="bn", variables_collections=["mine"], outputs_collections="outputs"
        )
    for topic in ("updates_collections", "variables_collections", "outputs_collections"):
        assert caplog.text.count(f"{topic}:") == 1
    caplog.clear()
    store._explained.clear()
    batch_norm(images(), scope="bn", updates_collections=None)
    assert "updates_collections" not in caplog.text
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_store_counts_anew_in_every_pass_and_finds_its_layers() -> None:
    layers = LayerStore()
    x = images()

    @tf.function
    def step(x: tf.Tensor, phase: tf.Tensor) -> tf.Tensor:
        with layers:
            return batch_norm(batch_norm(x, is_training=phase), is_training=phase)

    for shape in (4, 2):  # two traces
        step(tf.constant(x[:shape]), tf.constant(True))
    assert list(layers.named) == ["BatchNorm", "BatchNorm_1"]
    assert len(layers.trainable_variables) == 2
    assert default_store().named == {}
    with (
        layers,
        pytest.raises(ValueError, match=r"scope 'BatchNorm' is already used in this pass"),
    ):
        batch_norm(batch_norm(x), scope="BatchNorm")
    with layers:
        batch_norm(batch_norm(x), scope="BatchNorm", reuse=True)
    assert len(layers.named) == 2


class Network(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.norms = LayerStore()

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        with self.norms:
            return batch_norm(self.dense(inputs), is_training=bool(training), decay=0.5)


def test_store_inside_a_model_trains_saves_and_loads(tmp_path: Path) -> None:
    network = Network()
    network.compile("sgd", "mse")
    network.fit(images(2), np.ones((12, 3)), verbose=0)
    assert len(network.weights) == 5
    assert np.all(network.norms["BatchNorm"].moving_mean.numpy() != 0)
    network.save_weights(tmp_path / "network.weights.h5")
    other = Network()
    other(images(2))
    other.load_weights(tmp_path / "network.weights.h5")
    for ours, theirs in zip(other.weights, network.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_symbolic_inputs_of_keras_work() -> None:
    inputs = keras.Input((5, 5, 3))
    outputs = batch_norm(inputs, is_training=True, scope="symbolic")
    model = keras.Model(inputs, outputs)
    np.testing.assert_allclose(np.mean(model(images())), 0.0, atol=1e-5)
    assert model.layers[1] is default_store()["symbolic"]


def test_missing_scope_names_those_there_are() -> None:
    batch_norm(images(), scope="here")
    with pytest.raises(KeyError, match="no layer 'there'; there are: here"):
        default_store()["there"]
