"""Every model by name, with the normalization asked for, and what is refused."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from launcher.errors import UsageError
from launcher.train.models import build_model
from syncbn import SyncBatchNormalization


def _build(name: str, **options: Any) -> keras.Model:
    return build_model(name, (8, 8, 1), 7, **options)


def _norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += _norms(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            found.append(layer)
    return found


@pytest.mark.parametrize(
    ("name", "norms", "parameters"),
    [
        ("dnn", 2, 19200 + 30000 + 4 * 400 + 707),
        ("cnn", 3, None),
        # As published for 3 by 3 stems, with one input channel and seven classes.
        ("resnet18", 20, None),
        ("resnet34", 36, None),
        ("resnet50", 53, None),
    ],
)
def test_our_networks(name: str, norms: int, parameters: int | None) -> None:
    model = _build(name, bn_momentum=0.8)
    layers = _norms(model)
    assert len(layers) == norms
    assert all(isinstance(layer, SyncBatchNormalization) for layer in layers)
    assert {(layer.momentum, layer.synchronized) for layer in layers} == {(0.8, True)}
    assert model.output_shape == (None, 7)
    if parameters is not None:
        assert model.count_params() == parameters


def test_the_networks_without_and_with_local_normalization() -> None:
    assert _norms(_build("resnet18", norm="none")) == []
    assert {layer.synchronized for layer in _norms(_build("cnn", norm="local"))} == {False}


def test_dnn_is_the_classic_one() -> None:
    model = _build("dnn")
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == [300, 100, 7]
    assert all(isinstance(d.kernel_initializer, keras.initializers.HeNormal) for d in dense[:2])
    assert sum(isinstance(layer, keras.layers.ELU) for layer in model.layers) == 2


@pytest.mark.parametrize("norm", ["sync", "local", "none"])
def test_inputs_are_adapted_to_an_application(norm: str) -> None:
    model = _build("MobileNetV2", norm=norm)
    layers = _norms(model)
    assert len(layers) == (0 if norm == "none" else 52)
    kind = SyncBatchNormalization if norm == "sync" else keras.layers.BatchNormalization
    assert all(type(layer) is kind for layer in layers)
    assert model.input_shape == (None, 8, 8, 1)
    logits = model(np.zeros((2, 8, 8, 1), np.float32), training=False)
    assert logits.shape == (2, 7)


def test_mixed_precision_ends_in_float32() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = _build("cnn")
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.output.dtype == "float32"
    assert model.get_layer("conv1").compute_dtype == "bfloat16"
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}


def test_a_users_model_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_model.py").write_text(
        "import keras\n"
        "def make(shape, classes):\n"
        "    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(),\n"
        "        keras.layers.Dense(5), keras.layers.BatchNormalization(momentum=0.7),\n"
        "        keras.layers.Dense(classes)])\n"
        "def wrong(shape, classes):\n"
        "    return keras.Sequential([keras.Input(shape), keras.layers.Flatten()])\n"
        "def failing(shape, classes):\n"
        "    raise KeyError('nothing')\n"
    )
    monkeypatch.chdir(tmp_path)
    (norm,) = _norms(_build("their_model:make"))
    assert isinstance(norm, SyncBatchNormalization)
    assert norm.momentum == 0.7
    with pytest.raises(UsageError, match=r"logits of shape \(None, 7\).*\(None, 64\)"):
        _build("their_model:wrong")
    with pytest.raises(UsageError, match="KeyError"):
        _build("their_model:failing")
    with pytest.raises(UsageError, match="cannot import it"):
        _build("their_model:absent")


def test_an_unknown_application_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean MobileNetV2"):
        _build("MobileNetV9")
