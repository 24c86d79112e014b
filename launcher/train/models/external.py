"""Models from keras.applications or the user, with batch normalization replaced by `--norm`."""

import difflib
import inspect
from typing import Any

import keras

import syncbn
from launcher.errors import UsageError
from launcher.train.config import MODELS
from launcher.train.import_path import load_function

# Most architectures need 32 pixels; the others raise an error when they are built smaller.
_SIDES = (32, 75, 96, 128, 224)


def application(name: str, shape: tuple[int, ...], classes: int, norm: str) -> keras.Model:
    """A randomly initialized architecture of keras.applications with a new classification head.

    Images smaller than its minimum are resized, and a single channel is repeated three times.

    Raises:
        UsageError: Keras has no such architecture.
    """
    make = getattr(keras.applications, name, None)
    if not inspect.isfunction(make):
        known = [*MODELS, *(n for n in dir(keras.applications) if n[0].isupper())]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"--model: expected one of {', '.join(MODELS)}, a name of keras.applications or "
            f"package.module:function{hint}. Received: {name!r}"
        )
    inputs = keras.Input(shape, name="image")
    body = replace_norm(_body(make, max(shape[:2])), norm)
    x: Any = inputs
    if shape[-1] == 1:
        x = keras.layers.Concatenate()([x, x, x])
    side = body.input_shape[1]
    if tuple(shape[:2]) != (side, side):
        x = keras.layers.Resizing(side, side)(x)
    logits = keras.layers.Dense(classes, dtype="float32", name="logits")(body(x))
    return keras.Model(inputs, logits, name=name)


def _body(make: Any, side: int) -> keras.Model:
    """The architecture without its head, at the smallest size it accepts."""
    options: dict[str, Any] = {"include_top": False, "weights": None, "pooling": "avg"}
    if "include_preprocessing" in inspect.signature(make).parameters:
        options["include_preprocessing"] = False  # the data is standardized already
    sides = sorted({max(side, smallest) for smallest in _SIDES})
    for index, candidate in enumerate(sides):
        try:
            return make(input_shape=(candidate, candidate, 3), **options)
        except ValueError:
            if index == len(sides) - 1:
                raise
    raise AssertionError("unreachable: the last size raises")


def user_model(reference: str, shape: tuple[int, ...], classes: int, norm: str) -> keras.Model:
    """The model from images to logits that the user's `function(shape, classes)` returns.

    Raises:
        UsageError: It cannot be imported or called, or returns something else.
    """
    function = load_function("--model", reference)
    try:
        model = function(shape, classes)
    except Exception as error:
        raise UsageError(
            f"--model {reference}: calling it with {shape}, {classes} failed "
            f"({type(error).__name__}: {error})"
        ) from error
    if not isinstance(model, keras.Model) or not model.built:
        raise UsageError(f"--model {reference}: expected a built keras.Model. Received: {model!r}")
    if model.output_shape != (None, classes):
        raise UsageError(
            f"--model {reference}: expected logits of shape (None, {classes}). "
            f"Received: {model.output_shape}"
        )
    return replace_norm(model, norm)


def replace_norm(model: keras.Model, norm: str) -> keras.Model:
    """The model with its batch normalization synchronized, unchanged, or removed."""
    if norm == "sync":
        return syncbn.convert_sync_batchnorm(model)
    if norm == "local":
        return model
    return keras.models.clone_model(model, clone_function=_without_norm)


def _without_norm(layer: keras.layers.Layer) -> keras.layers.Layer:
    if isinstance(layer, keras.layers.BatchNormalization):
        return _Unnormalized(name=layer.name)
    return type(layer).from_config(layer.get_config())


class _Unnormalized(keras.layers.Layer):
    """An identity that accepts the call arguments of a batch normalization."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return inputs
