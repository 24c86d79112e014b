"""Models that others wrote, with their batch normalization replaced as `--norm` says."""

import difflib
import inspect
from typing import Any

import keras

from launcher.errors import UsageError
from launcher.train.config import MODELS, TrainConfig
from launcher.train.data import DataSet
from launcher.train.import_path import load_function
from syncbn.surgery import convert_sync_batchnorm

# Most applications need 32 pixels; the others say so when they are built.
_SIDES = (32, 75, 96, 128, 224)


def application(config: TrainConfig, data: DataSet) -> keras.Model:
    """An architecture of keras.applications, from scratch, with a new head.

    Smaller images are resized to what it needs, and one channel is repeated to three.

    Raises:
        UsageError: There is no such architecture.
    """
    make = getattr(keras.applications, config.model, None)
    if not inspect.isfunction(make):
        known = [*MODELS, *(n for n in dir(keras.applications) if n[0].isupper())]
        near = difflib.get_close_matches(config.model, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"--model: expected one of {', '.join(MODELS)}, a name of keras.applications or "
            f"package.module:function{hint}. Received: {config.model!r}"
        )
    inputs = keras.Input(data.shape, name="image")
    body = with_norm(_body(make, max(data.shape[:2])), config)
    x: Any = inputs
    if data.shape[-1] == 1:
        x = keras.layers.Concatenate()([x, x, x])
    side = body.input_shape[1]
    if tuple(data.shape[:2]) != (side, side):
        x = keras.layers.Resizing(side, side)(x)
    logits = keras.layers.Dense(data.classes, dtype="float32", name="logits")(body(x))
    return keras.Model(inputs, logits, name=config.model)


def _body(make: Any, side: int) -> keras.Model:
    """The architecture without its head, at the smallest size it takes."""
    options: dict[str, Any] = {"include_top": False, "weights": None, "pooling": "avg"}
    if "include_preprocessing" in inspect.signature(make).parameters:
        options["include_preprocessing"] = False  # Our data is standardized already.
    sides = sorted({max(side, smallest) for smallest in _SIDES})
    for index, candidate in enumerate(sides):
        try:
            return make(input_shape=(candidate, candidate, 3), **options)
        except ValueError:
            if index == len(sides) - 1:
                raise
    raise AssertionError("unreachable: the last size raises")


def user_model(config: TrainConfig, data: DataSet) -> keras.Model:
    """What the user's `function(shape, classes)` returns: a model from images to logits.

    Raises:
        UsageError: It cannot be imported or called, or returns something else.
    """
    function = load_function("--model", config.model)
    try:
        model = function(data.shape, data.classes)
    except Exception as error:
        raise UsageError(
            f"--model {config.model}: calling it with {data.shape}, {data.classes} failed "
            f"({type(error).__name__}: {error})"
        ) from error
    if not isinstance(model, keras.Model) or not model.built:
        raise UsageError(
            f"--model {config.model}: expected a built keras.Model. Received: {model!r}"
        )
    if model.output_shape != (None, data.classes):
        raise UsageError(
            f"--model {config.model}: expected logits of shape (None, {data.classes}). "
            f"Received: {model.output_shape}"
        )
    return with_norm(model, config)


def with_norm(model: keras.Model, config: TrainConfig) -> keras.Model:
    """The model with its batch normalization layers synchronized, as they are, or taken out."""
    if config.norm == "sync":
        return convert_sync_batchnorm(model)
    if config.norm == "local":
        return model
    return keras.models.clone_model(model, clone_function=_without_norm)


def _without_norm(layer: keras.layers.Layer) -> keras.layers.Layer:
    if isinstance(layer, keras.layers.BatchNormalization):
        return _Unnormalized(name=layer.name)
    return type(layer).from_config(layer.get_config())


class _Unnormalized(keras.layers.Layer):
    """Takes the place of a batch normalization, with the arguments that one was called with."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return inputs
