"""Whole models to the synchronized layer and back: nothing lost, nothing shared by accident."""

import logging
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import SyncBatchNormalization, convert_sync_batchnorm, revert_sync_batchnorm
from syncbn.training import DistributedOptimizer, weigh_rows
from tests.syncbn.models import (
    Block,
    FunctionalSubclass,
    Subclassed,
    branched,
    sequential,
    shake,
)

L = keras.layers


def kinds(model: keras.Model) -> list[type]:
    return [
        type(layer)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def values(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.weights]


def assert_bitwise(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    assert [a.tobytes() for a in left] == [b.tobytes() for b in right]


def example(model: keras.Model, rows: int = 4) -> object:
    random = np.random.default_rng(3)
    make = lambda t: random.normal(size=(rows, *t.shape[1:])).astype("float32")  # noqa: E731
    source = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(make, source)


def assert_same_outputs(left: keras.Model, right: keras.Model, inputs: object) -> None:
    ours, theirs = left(inputs, training=False), right(inputs, training=False)
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), ours, theirs
    )


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
    model.fit(*data, verbose=0)  # traced anew, with the layers that are there now
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


def test_unbuilt_models_are_converted_before_they_know_their_shapes() -> None:
    stack = keras.Sequential([L.Dense(3), L.BatchNormalization(name="b")], name="s")
    converted = convert_sync_batchnorm(stack)
    assert converted is not stack
    assert not converted.built
    converted(np.ones((2, 5), "float32"))
    assert [w.shape for w in converted.weights] == [(5, 3), (3,), (3,), (3,), (3,), (3,)]
    subclassed = convert_sync_batchnorm(Subclassed())
    subclassed(np.ones((2, 4), "float32"), training=True)
    # A block makes its last one when it is built, which had not happened.
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
    config = model.get_config()  # the graph knows its calls by the new layer
    assert config is not None
    model.compile("sgd", "mse")
    model.fit(inputs, np.ones((6, 1)), verbose=0)
    assert model.steps >= 1


class StepCounting(keras.Model):
    """A functional subclass that only adds a step: its graph is all there is to copy."""

    def train_step(self, data: object) -> dict[str, object]:
        return super().train_step(data)


def test_functional_subclass_without_a_constructor_keeps_its_class() -> None:
    inputs = keras.Input((3,))
    model = StepCounting(inputs, L.BatchNormalization()(inputs))
    converted = convert_sync_batchnorm(model)
    assert converted is not model
    assert type(converted) is StepCounting


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


class Special(keras.layers.BatchNormalization):
    pass


def test_subclasses_of_users_are_left_alone_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = keras.Sequential([keras.Input((3,)), Special(name="mine"), L.BatchNormalization()])
    assert kinds(convert_sync_batchnorm(model)) == [Special, SyncBatchNormalization]
    assert "left alone, since they are subclasses: mine" in caplog.text


def test_compiled_model_comes_back_compiled_with_its_optimizer() -> None:
    model = sequential()
    model.compile(keras.optimizers.Adam(0.02), "mse", metrics=["mae"])
    data = (example(model, 8), np.ones((8, 2), "float32"))
    model.fit(*data, verbose=0)
    converted = convert_sync_batchnorm(model)
    assert converted.compiled
    assert int(converted.optimizer.iterations) == 1
    assert float(converted.optimizer.learning_rate) == pytest.approx(0.02)
    old, new = ([v.numpy() for v in m.optimizer.variables] for m in (model, converted))
    assert_bitwise(new, old)
    assert "mae" in converted.evaluate(*data, verbose=0, return_dict=True)
    converted.fit(*data, verbose=0)
    assert int(model.optimizer.iterations) == 1


@pytest.mark.parametrize("passes", [1, 2])
def test_distributed_optimizer_stays_distributed(passes: int) -> None:
    model = sequential()
    optimizer = DistributedOptimizer(
        keras.optimizers.Adam(0.02), backward_passes_per_step=passes, compression="bfloat16"
    )
    model.compile(optimizer, "mse")
    weigh_rows(model)
    data = (example(model, 8), np.ones((8, 2), "float32"))
    model.fit(*data, batch_size=4, verbose=0)
    converted = convert_sync_batchnorm(model)
    distributed = converted.optimizer
    assert [kind.__name__ for kind in type(distributed).__mro__][1] == "_Distributed"
    for name in ("_ranks", "_passes", "_average", "_wire"):
        assert getattr(distributed, name) == getattr(optimizer, name)
    assert int(distributed.iterations) == 2 // passes
    assert "train_step" in vars(converted)
    converted.fit(*data, batch_size=4, verbose=0)
    assert int(distributed.iterations) == 4 // passes


def test_loss_without_a_configuration_leaves_the_copy_uncompiled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = sequential()
    model.compile("sgd", loss=lambda y, p: keras.ops.mean(y - p))
    assert not convert_sync_batchnorm(model).compiled
    assert "is not compiled, call compile()" in caplog.text
    assert model.compiled


def test_model_without_normalization_is_copied(caplog: pytest.LogCaptureFixture) -> None:
    model = keras.Sequential([keras.Input((3,)), L.Dense(1)])
    with caplog.at_level(logging.INFO):
        assert convert_sync_batchnorm(model) is not model
    assert "replaced 0 batch normalizations" in caplog.text


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
    arguments: dict[str, object], message: str
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
