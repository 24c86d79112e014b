"""Arguments of converted layers, and invalid ones."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from syncbn import SyncBatchNormalization, convert_sync_batchnorm, revert_sync_batchnorm
from tests.syncbn.model_comparison import assert_bitwise, kinds, values
from tests.syncbn.models import (
    Subclassed,
    sequential,
    shake,
)

L = keras.layers


def test_converting_twice_keeps_arguments_but_for_those_given() -> None:
    model = shake(sequential())
    once = convert_sync_batchnorm(model, group_size=1, activation="relu", bessel_correction=True)
    twice = convert_sync_batchnorm(once, momentum=0.3)
    layer = twice.layers[1]
    assert (layer.group_size, layer.momentum, layer.bessel_correction) == (1, 0.3, True)
    assert layer.activation is keras.activations.relu
    assert layer.gamma_regularizer is not None
    assert_bitwise(values(twice), values(model))


def test_renorm_given_to_a_trained_model_starts_from_its_statistics() -> None:
    model = shake(sequential())
    layer = convert_sync_batchnorm(model, renorm=True, zero_debias_moving_mean=True).layers[1]
    old = model.layers[1]
    stddev = np.sqrt(old.moving_variance.numpy() + old.epsilon)
    np.testing.assert_allclose(layer.moving_stddev, stddev, 1e-6)
    np.testing.assert_allclose(layer.renorm_stddev, stddev, 1e-6)
    np.testing.assert_allclose(layer.renorm_mean, old.moving_mean, 1e-6)
    before = layer.moving_mean.numpy()
    constant = np.broadcast_to(before, (2, 2, 2, 4)).astype("float32")
    layer(constant, training=True)
    np.testing.assert_allclose(layer.moving_mean, before, 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentun": 0.9}, r"layer_arguments must be among momentum, .*Received: momentun=0.9"),
        ({"axis": 1}, "Received: axis=1"),
        ({"scale": False}, "Received: scale=False"),
        ({"name": "x"}, "Received: name='x'"),
        ({"group_size": 0}, "group_size must be a positive integer"),
        ({"communicator": "ncll"}, "communicator must be"),
    ],
)
def test_bad_arguments_are_named_before_anything_changes(
    arguments: dict[str, Any], message: str
) -> None:
    model = Subclassed()
    with pytest.raises(ValueError, match=message):
        convert_sync_batchnorm(model, **arguments)
    assert SyncBatchNormalization not in kinds(model)


@pytest.mark.parametrize("function", [convert_sync_batchnorm, revert_sync_batchnorm])
def test_only_models_are_accepted(function: Callable[[object], object]) -> None:
    with pytest.raises(ValueError, match=r"expects a keras.Model. Received: Dense"):
        function(L.Dense(1))


def test_revert_refuses_an_activation_and_changes_nothing() -> None:
    model = convert_sync_batchnorm(Subclassed())
    model.named["one"].activation = keras.activations.relu
    with pytest.raises(ValueError, match=r"Received: layer 'named' with activation='relu'"):
        revert_sync_batchnorm(model)
    assert set(kinds(model)) == {SyncBatchNormalization}
