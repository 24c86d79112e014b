"""Conversion of models to the synchronized layer and back."""

import logging
from collections.abc import Callable

import keras
import numpy as np
import pytest

from syncbn import SyncBatchNormalization, convert_sync_batchnorm, revert_sync_batchnorm
from tests.syncbn.model_comparison import (
    assert_bitwise,
    assert_same_outputs,
    example,
    kinds,
    values,
)
from tests.syncbn.models import (
    Block,
    Subclassed,
    branched,
    sequential,
    shake,
)

L = keras.layers

APPLICATIONS = {
    "resnet50": (keras.applications.ResNet50, 53),
    "mobilenetv2": (keras.applications.MobileNetV2, 52),
    "efficientnetb0": (keras.applications.EfficientNetB0, 49),
}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications_keep_everything(name: str) -> None:
    build, count = APPLICATIONS[name]
    model = shake(build(weights=None, input_shape=(32, 32, 3), classes=3))
    model.layers[4].trainable = False
    before = values(model)
    converted = convert_sync_batchnorm(model, momentum=0.5)
    assert kinds(converted) == [SyncBatchNormalization] * count
    assert kinds(model) == [L.BatchNormalization] * count
    reverted = revert_sync_batchnorm(converted)
    assert kinds(reverted) == [L.BatchNormalization] * count
    for other in (converted, reverted):
        assert [layer.name for layer in other.layers] == [layer.name for layer in model.layers]
        assert [v.path for v in other.weights] == [v.path for v in model.weights]
        assert [la.trainable for la in other.layers] == [la.trainable for la in model.layers]
        assert_bitwise(values(other), before)
        assert not {id(v) for v in other.weights} & {id(v) for v in model.weights}
    inputs = example(model, 2)
    assert_same_outputs(converted, model, inputs)
    assert_same_outputs(reverted, model, inputs)
    assert_bitwise(values(model), before)


@pytest.mark.parametrize("build", [sequential, branched])
def test_round_trip_is_the_same_model(build: Callable[[], keras.Model]) -> None:
    model = shake(build())
    converted = convert_sync_batchnorm(model)
    assert set(kinds(converted)) == {SyncBatchNormalization}
    reverted = revert_sync_batchnorm(converted)
    assert_bitwise(values(reverted), values(model))
    assert_same_outputs(converted, model, example(model))
    assert_same_outputs(reverted, model, example(model))
    assert type(converted) is type(model)
    assert converted.name == model.name
    before, after = (
        [layer.get_config() for layer in m._flatten_layers() if not isinstance(layer, keras.Model)]
        for m in (model, reverted)
    )
    assert after == before


def test_shared_layers_stay_shared_and_structures_stay() -> None:
    converted = convert_sync_batchnorm(shake(branched()))
    assert len(converted.get_layer("shared")._inbound_nodes) == 2
    assert [layer.name for layer in converted._flatten_layers()].count("inner") == 1
    assert sorted(converted.output) == ["map", "pooled"]
    assert sorted(converted.input) == ["first", "second"]
    frozen = converted.get_layer("frozen")
    assert not frozen.trainable
    assert frozen.trainable_weights == []
    assert frozen.gamma.name == "gamma"
    assert converted.get_layer("shared").epsilon == 0.02
    deep = converted.get_layer("inner").get_layer("innermost").get_layer("deep")
    assert isinstance(deep, SyncBatchNormalization)


def test_training_moves_the_copy_and_not_the_original() -> None:
    model = shake(sequential())
    before = values(model)
    converted = convert_sync_batchnorm(model)
    twin = convert_sync_batchnorm(model, synchronized=False)
    data = (example(model, 16), np.ones((16, 2), "float32"))
    for trained in (converted, twin):
        trained.compile(keras.optimizers.SGD(0.1), "mse")
        trained.fit(*data, batch_size=8, shuffle=False, verbose=0)
    assert_bitwise(values(model), before)
    for a, b in zip(values(converted), values(twin), strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-6)
    assert not np.array_equal(values(converted)[4], before[4])


def test_nested_trainable_flags_differ_inside_and_outside() -> None:
    model = branched()
    model.get_layer("inner").trainable = False
    model.get_layer("inner").get_layer("inside").trainable = True
    converted = convert_sync_batchnorm(model)
    flags = [[layer.trainable for layer in m._flatten_layers()] for m in (model, converted)]
    assert flags[0] == flags[1]
    assert len(converted.trainable_weights) == len(model.trainable_weights)


def test_dtype_policies_are_kept_layer_by_layer() -> None:
    inputs = keras.Input((4,))
    hidden = L.Dense(4, dtype="mixed_bfloat16")(inputs)
    outputs = L.BatchNormalization(dtype="float64")(
        L.BatchNormalization(dtype="mixed_bfloat16")(hidden)
    )
    converted = convert_sync_batchnorm(keras.Model(inputs, outputs))
    policies = [layer.dtype_policy.name for layer in converted.layers[1:]]
    assert policies == ["mixed_bfloat16", "mixed_bfloat16", "float64"]
    assert [v.dtype for v in converted.layers[3].weights] == ["float64"] * 4


def test_unbuilt_models_are_converted_before_they_know_their_shapes() -> None:
    stack = keras.Sequential([L.Dense(3), L.BatchNormalization(name="b")], name="s")
    converted = convert_sync_batchnorm(stack)
    assert converted is not stack
    assert not converted.built
    converted(np.ones((2, 5), "float32"))
    assert [w.shape for w in converted.weights] == [(5, 3), (3,), (3,), (3,), (3,), (3,)]
    subclassed = convert_sync_batchnorm(Subclassed())
    subclassed(np.ones((2, 4), "float32"), training=True)
    # A block creates its last layer when it is built.
    assert kinds(subclassed).count(L.BatchNormalization) == 1
    assert set(kinds(convert_sync_batchnorm(subclassed))) == {SyncBatchNormalization}


def test_custom_layers_inside_a_functional_model_are_copied() -> None:
    inputs = keras.Input((3,))
    block = Block(4, name="block")
    model = shake(keras.Model(inputs, L.Lambda(lambda t: t * 2.0)(block(inputs))))
    block.dense.trainable = False
    converted = convert_sync_batchnorm(model)
    copied = converted.get_layer("block")
    assert copied is not block
    assert kinds(converted) == [SyncBatchNormalization] * 2
    assert kinds(model) == [L.BatchNormalization] * 2
    assert [v.path for v in copied.weights] == [v.path for v in block.weights]
    assert not copied.dense.trainable
    assert_bitwise(values(converted), values(model))
    assert_same_outputs(converted, model, example(model))


class StepCounting(keras.Model):
    """A functional subclass that only adds a step: its graph defines the whole copy."""

    def train_step(self, data: object) -> dict[str, object]:
        return super().train_step(data)


def test_functional_subclass_without_a_constructor_keeps_its_class() -> None:
    inputs = keras.Input((3,))
    model = StepCounting(inputs, L.BatchNormalization()(inputs))
    converted = convert_sync_batchnorm(model)
    assert converted is not model
    assert type(converted) is StepCounting


class Special(keras.layers.BatchNormalization):
    pass


def test_subclasses_of_users_are_not_replaced_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = keras.Sequential([keras.Input((3,)), Special(name="mine"), L.BatchNormalization()])
    assert kinds(convert_sync_batchnorm(model)) == [Special, SyncBatchNormalization]
    assert "not replaced, since they are subclasses: mine" in caplog.text


def test_model_without_normalization_is_copied(caplog: pytest.LogCaptureFixture) -> None:
    model = keras.Sequential([keras.Input((3,)), L.Dense(1)])
    with caplog.at_level(logging.INFO):
        assert convert_sync_batchnorm(model) is not model
    assert "replaced 0 batch normalizations" in caplog.text
