"""Folding for inference: the same predictions from fewer layers; what must not be folded stays."""

import logging
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from syncbn import SyncBatchNormalization, fold_batchnorm
from tests.syncbn.models import Block, Subclassed, branched, sequential, shake

L = keras.layers
NORMALIZATIONS = [L.BatchNormalization, SyncBatchNormalization]


def count(model: keras.Model) -> int:
    return sum(isinstance(layer, L.BatchNormalization) for layer in model._flatten_layers())


def relative_error(folded: keras.Model, model: keras.Model, *shapes: tuple[int, ...]) -> float:
    random = np.random.default_rng(5)
    inputs = [random.normal(size=shape).astype("float32") for shape in shapes]
    given = inputs if len(inputs) > 1 else inputs[0]
    ours, theirs = (
        np.concatenate([np.ravel(t) for t in keras.tree.flatten(m(given, training=False))])
        for m in (folded, model)
    )
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


# name: the layer, the shape of a batch, the channel axis
KINDS: dict[str, tuple[Callable[[], keras.Layer], tuple[int, ...], int]] = {
    "dense": (lambda: L.Dense(5), (4, 3), -1),
    "dense_rank_3": (lambda: L.Dense(5, use_bias=False), (4, 6, 3), -1),
    "conv1d": (lambda: L.Conv1D(5, 3, padding="causal"), (2, 8, 3), -1),
    "conv2d": (lambda: L.Conv2D(5, 3), (2, 6, 6, 3), -1),
    "conv2d_no_bias": (lambda: L.Conv2D(5, 3, use_bias=False), (2, 6, 6, 3), 3),
    "conv2d_groups": (lambda: L.Conv2D(6, 3, groups=3, padding="same"), (2, 6, 6, 6), -1),
    "conv3d": (lambda: L.Conv3D(4, 2), (2, 4, 4, 4, 3), -1),
    "conv1d_transpose": (lambda: L.Conv1DTranspose(5, 3, strides=2), (2, 5, 3), -1),
    "conv2d_transpose": (lambda: L.Conv2DTranspose(5, 3, strides=2), (2, 5, 5, 3), -1),
    "conv3d_transpose": (lambda: L.Conv3DTranspose(4, 2), (2, 3, 3, 3, 2), -1),
    "depthwise1d": (lambda: L.DepthwiseConv1D(3, depth_multiplier=2), (2, 8, 3), -1),
    "depthwise2d": (lambda: L.DepthwiseConv2D(3, depth_multiplier=2), (2, 6, 6, 3), -1),
    "depthwise2d_no_bias": (lambda: L.DepthwiseConv2D(3, use_bias=False), (2, 6, 6, 3), -1),
    "separable1d": (lambda: L.SeparableConv1D(5, 3, depth_multiplier=2), (2, 8, 3), -1),
    "separable2d": (lambda: L.SeparableConv2D(5, 3, use_bias=False), (2, 6, 6, 3), -1),
    "conv1d_first": (lambda: L.Conv1D(5, 3, data_format="channels_first"), (2, 3, 8), 1),
    "conv2d_first": (lambda: L.Conv2D(5, 3, data_format="channels_first"), (2, 3, 6, 6), 1),
    "depthwise2d_first": (
        lambda: L.DepthwiseConv2D(3, data_format="channels_first"),
        (2, 3, 6, 6),
        1,
    ),
    "separable1d_first": (
        lambda: L.SeparableConv1D(5, 3, data_format="channels_first"),
        (2, 3, 8),
        1,
    ),
}


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_layer_predicts_the_same(name: str, normalization: type[keras.Layer]) -> None:
    make, shape, axis = KINDS[name]
    inputs = keras.Input(shape[1:])
    options = (
        {} if name.startswith("conv2d") else {"scale": "1d" not in name, "center": len(name) > 6}
    )
    layer = make()
    model = shake(keras.Model(inputs, L.ReLU()(normalization(axis=axis, **options)(layer(inputs)))))
    before = model.get_weights()
    folded = fold_batchnorm(model)
    assert (count(model), count(folded)) == (1, 0)
    assert [la.name for la in folded.layers] == [
        la.name for la in model.layers if la is not model.layers[2]
    ]
    assert relative_error(folded, model, shape) < 1e-6
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


@pytest.mark.parametrize(
    ("build", "shape", "total"),
    [
        (keras.applications.ResNet50, (64, 64, 3), 53),
        (keras.applications.MobileNetV2, (64, 64, 3), 52),
    ],
)
def test_applications_fold_completely(
    build: Callable[..., keras.Model],
    shape: tuple[int, ...],
    total: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build(weights=None, input_shape=shape, classes=10, classifier_activation=None)
    with caplog.at_level(logging.INFO):
        folded = fold_batchnorm(model)
    assert f"folded {total} of {total} batch normalizations" in caplog.text
    assert count(folded) == 0
    assert relative_error(folded, model, (2, *shape)) < 1e-5


def test_folded_model_is_as_near_to_float64_as_the_original() -> None:
    # Random weights and odd statistics in twenty layers amplify any rounding.
    inputs = keras.Input((8, 8, 3))
    hidden = inputs
    for _ in range(20):
        hidden = L.ReLU()(SyncBatchNormalization()(L.Conv2D(8, 3, padding="same")(hidden)))
    model = shake(keras.Model(inputs, hidden))
    keras.config.set_dtype_policy("float64")
    try:
        exact = keras.Model.from_config(model.get_config() | {"layers": _in_float64(model)})
    finally:
        keras.config.set_dtype_policy("float32")
    exact.set_weights(model.get_weights())
    ours = relative_error(fold_batchnorm(model), exact, (2, 8, 8, 3))
    original = relative_error(model, exact, (2, 8, 8, 3))
    assert ours < 3 * original
    assert relative_error(fold_batchnorm(exact), exact, (2, 8, 8, 3)) < 1e-13


def _in_float64(model: keras.Model) -> list[dict[str, object]]:
    layers = model.get_config()["layers"]
    for layer in layers:
        layer["config"]["dtype"] = "float64"
    return layers


def test_sequential_nested_and_unfoldable_parts() -> None:
    stack = shake(sequential())
    folded = fold_batchnorm(stack)
    assert isinstance(folded, keras.Sequential)
    assert (count(stack), count(folded)) == (1, 0)
    assert relative_error(folded, stack, (2, 6, 6, 3)) < 1e-6
    model = shake(branched())
    folded = fold_batchnorm(model)
    # Folded are "shared", behind two convolutions of their own, and "deep" in the innermost model;
    # "inside" has a whole model before it, "frozen" an addition.
    left = [la.name for la in folded._flatten_layers() if isinstance(la, L.BatchNormalization)]
    assert sorted(left) == ["frozen", "inside"]
    assert sorted(folded.output) == ["map", "pooled"]
    inputs = {
        name: np.random.default_rng(1).normal(size=(2, 6, 6, 3)) for name in ("first", "second")
    }
    ours, theirs = folded(inputs), model(inputs)
    for key in ("map", "pooled"):
        np.testing.assert_allclose(ours[key], theirs[key], 1e-5, 1e-5)


def test_activation_of_the_normalization_moves_into_the_layer() -> None:
    inputs = keras.Input((3,))
    outputs = SyncBatchNormalization(activation="gelu")(L.Dense(5)(inputs))
    model = shake(keras.Model(inputs, outputs))
    folded = fold_batchnorm(model)
    assert folded.layers[1].activation is keras.activations.gelu
    assert relative_error(folded, model, (4, 3)) < 1e-6


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


@pytest.mark.parametrize(
    "outputs",
    [
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
def test_what_must_not_be_folded_is_not(
    outputs: Callable[[keras.KerasTensor], list[keras.KerasTensor]],
) -> None:
    inputs = keras.Input((3,))
    with keras.saving.custom_object_scope({"Rescaled": Rescaled}):
        model = shake(keras.Model(inputs, outputs(inputs)))
        folded = fold_batchnorm(model)
    assert count(folded) == count(model) > 0
    assert relative_error(folded, model, (4, 3)) < 1e-6


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


def test_folded_model_saves_loads_exports_and_evaluates(tmp_path: Path) -> None:
    model = shake(sequential())
    model.compile("adam", "mse", metrics=["mae"])
    folded = fold_batchnorm(model)
    inputs = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    folded.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(loaded(inputs), folded(inputs))
    folded.export(tmp_path / "exported", verbose=False)
    # The loss lacks the penalty on a gamma that is gone.
    ours, theirs = (m.evaluate(inputs, np.ones((4, 2)), verbose=0)[1] for m in (folded, model))
    assert ours == pytest.approx(theirs, rel=1e-5)


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
