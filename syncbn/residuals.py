"""The residual that a layer adds to the normalized values."""

from typing import Any

import keras
import tensorflow as tf


def check(inputs: Any, residual: Any) -> None:
    """Checks shape and dtype as far as they are known, of tensors or symbolic tensors.

    Raises:
        ValueError: `residual` cannot be added to `inputs` without broadcasting or a cast.
    """
    ours, theirs = (tf.TensorShape(value.shape) for value in (inputs, residual))
    kinds = [keras.backend.standardize_dtype(value.dtype) for value in (inputs, residual)]
    if ours.is_compatible_with(theirs) and kinds[0] == kinds[1]:
        return
    raise ValueError(
        "residual must have the shape and dtype of inputs. "
        f"Received: residual of shape {theirs} and dtype {kinds[1]}, "
        f"inputs of shape {ours} and dtype {kinds[0]}"
    )


def add(values: tf.Tensor, residual: tf.Tensor | None = None) -> tf.Tensor:
    """values + residual, in the dtype of `values`; an error at run time if the shapes differ."""
    if residual is None:
        return values
    if not (values.shape.is_fully_defined() and values.shape == residual.shape):
        check_shapes = tf.debugging.assert_equal(
            tf.shape(residual), tf.shape(values), "residual must have the shape of inputs"
        )
        with tf.control_dependencies([] if check_shapes is None else [check_shapes]):
            residual = tf.identity(residual)
    return values + tf.cast(residual, values.dtype)


def set_mask(outputs: Any, inputs: Any, residual: Any) -> None:
    """Gives `outputs` the mask that `keras.layers.Add` would give a sum of the two others."""
    masks = [getattr(value, "_keras_mask", None) for value in (inputs, residual)]
    one_without = any(mask is None for mask in masks)
    outputs._keras_mask = None if one_without else keras.ops.logical_or(*masks)
