"""Folding for inference: the same predictions with fewer layers."""

import logging
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from syncbn import SyncBatchNormalization, fold_batchnorm
from tests.syncbn.model_comparison import count, relative_error
from tests.syncbn.models import branched, sequential, shake

L = keras.layers
NORMALIZATIONS = [L.BatchNormalization, SyncBatchNormalization]

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
    # Folded: "shared", after two separate convolutions, and "deep" in the innermost model. Not
    # folded: "inside", which follows a whole model, and "frozen", which follows an addition.
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


def test_folded_model_saves_loads_exports_and_evaluates(tmp_path: Path) -> None:
    model = shake(sequential())
    model.compile("adam", "mse", metrics=["mae"])
    folded = fold_batchnorm(model)
    inputs = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype("float32")
    folded.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(loaded(inputs), folded(inputs))
    folded.export(tmp_path / "exported", verbose=False)
    # The loss lacks the penalty of the folded gamma.
    ours, theirs = (m.evaluate(inputs, np.ones((4, 2)), verbose=0)[1] for m in (folded, model))
    assert ours == pytest.approx(theirs, rel=1e-5)
