"""Layers that must not be folded, and models that cannot be folded."""

from collections.abc import Callable

import keras
import numpy as np
import pytest

from syncbn import fold_batchnorm
from tests.syncbn.model_comparison import count, relative_error
from tests.syncbn.models import Block, Subclassed, shake

L = keras.layers


def test_second_of_two_normalizations_stays() -> None:
    inputs = keras.Input((3,))
    outputs = L.BatchNormalization()(L.BatchNormalization()(L.Dense(5)(inputs)))
    model = shake(keras.Model(inputs, outputs))
    folded = fold_batchnorm(model)
    assert count(folded) == 1
    assert relative_error(folded, model, (4, 3)) < 1e-6


def shared_layer(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    dense, normalization = L.Dense(3), L.BatchNormalization()
    return [normalization(dense(x)), dense(x * 2.0)]


def shared_layer_same_normalization(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    dense, normalization = L.Dense(3), L.BatchNormalization()
    return [normalization(dense(normalization(dense(x))))]


def used_twice(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    hidden = L.Dense(3)(x)
    return [L.BatchNormalization()(hidden) + hidden]


def also_an_output(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    hidden = L.Dense(3)(x)
    return [L.BatchNormalization()(hidden), hidden]


def activated(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    return [L.BatchNormalization()(L.Dense(3, "relu")(x))]


def something_between(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    return [L.BatchNormalization()(keras.ops.relu(L.Dense(3)(x)))]


def other_axis(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    return [L.BatchNormalization(axis=1)(L.Dense(3)(L.Reshape((3, 1))(x)))]


def other_dtype(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    return [L.BatchNormalization()(L.Dense(3, dtype="bfloat16")(x))]


def inside_a_custom_layer(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    return [Block(3)(x)]


class Rescaled(keras.layers.Dense):
    def call(self, inputs: object, training: bool | None = None) -> object:
        return super().call(inputs) * 2.0


def subclass_of_a_user(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    return [L.BatchNormalization()(Rescaled(3)(x))]


def low_rank(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    """A dense layer with additional weights (LoRA)."""
    dense = L.Dense(3)
    outputs = [L.BatchNormalization()(dense(x))]
    dense.enable_lora(2)
    return outputs


def quantized(x: keras.KerasTensor) -> list[keras.KerasTensor]:
    dense = L.Dense(3)
    outputs = [L.BatchNormalization()(dense(x))]
    dense.quantize("int8")
    return outputs


@pytest.mark.parametrize(
    "outputs",
    [
        low_rank,
        shared_layer,
        shared_layer_same_normalization,
        used_twice,
        also_an_output,
        activated,
        something_between,
        other_axis,
        other_dtype,
        inside_a_custom_layer,
        subclass_of_a_user,
    ],
    ids=lambda function: function.__name__,
)
@pytest.mark.filterwarnings("error")
def test_layers_that_must_not_be_folded(
    outputs: Callable[[keras.KerasTensor], list[keras.KerasTensor]],
) -> None:
    inputs = keras.Input((3,))
    with keras.saving.custom_object_scope({"Rescaled": Rescaled}):
        model = shake(keras.Model(inputs, outputs(inputs)))
        folded = fold_batchnorm(model)
    assert count(folded) == count(model) > 0
    assert relative_error(folded, model, (4, 3)) < 1e-6


def test_a_quantized_layer_is_not_folded() -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, quantized(inputs))
    assert count(fold_batchnorm(model)) == count(model) == 1


def test_normalization_told_to_train_is_not_folded() -> None:
    inputs = keras.Input((3,))
    outputs = L.BatchNormalization()(L.Dense(3)(inputs), training=True)
    assert count(fold_batchnorm(keras.Model(inputs, outputs))) == 1


def test_layer_in_two_nested_models_is_not_folded() -> None:
    shared = L.Dense(3)
    one, two = keras.Input((3,)), keras.Input((3,))
    first = keras.Model(one, L.BatchNormalization()(shared(one)))
    second = keras.Model(two, shared(two))
    inputs = keras.Input((3,))
    model = shake(keras.Model(inputs, second(first(inputs))))
    folded = fold_batchnorm(model)
    assert count(folded) == 1
    assert relative_error(folded, model, (4, 3)) < 1e-6


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Subclassed, r"expects a built keras.Model. Received: an unbuilt model"),
        (lambda: L.Dense(1), r"expects a built keras.Model. Received: Dense"),
        (lambda: keras.Sequential([L.Dense(1)]), "Received: an unbuilt model"),
    ],
)
def test_bad_input_is_named(model: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fold_batchnorm(model())


def test_subclassed_model_is_refused() -> None:
    model = Subclassed()
    model(np.ones((2, 4), "float32"))
    with pytest.raises(
        ValueError, match=r"Received: Subclassed 'subclassed' is a subclassed model"
    ):
        fold_batchnorm(model)
