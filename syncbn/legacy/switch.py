"""Calls a layer with TensorFlow 1's semantics of training, trainable and dtypes."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from syncbn.layer import SyncBatchNormalization


def floating_inputs(inputs: Any) -> Any:
    """The inputs as a tensor of known rank.

    Raises:
        ValueError: Not floating point, or of unknown rank.
    """
    if not isinstance(inputs, keras.KerasTensor):
        inputs = tf.convert_to_tensor(inputs)
        if inputs.shape.rank is None:
            raise ValueError("inputs must have a known rank. Received: inputs of unknown shape")
    dtype = tf.as_dtype(inputs.dtype)
    if not dtype.is_floating:
        raise ValueError(f"inputs must be floating point. Received: inputs of dtype {dtype.name}")
    return inputs


def dtype_policy(inputs: Any) -> str:
    """The policy for the dtype of the inputs; half precision has float32 variables, as in TF 1."""
    dtype = tf.as_dtype(inputs.dtype).name
    return f"mixed_{dtype}" if dtype in ("float16", "bfloat16") else dtype


def call(
    layer: SyncBatchNormalization,
    inputs: Any,
    training: Any,
    argument: str,
    trainable: bool,
    batch_weights: Any = None,
) -> Any:
    """The outputs of the layer; `training` is a bool, 0 or 1, or a boolean scalar tensor.

    A tensor becomes a `tf.cond`; its value must be the same on every rank, otherwise ranks wait for
    each other forever.

    Args:
        trainable: False excludes beta and gamma from `trainable_variables`; statistics are still
            updated, as in TensorFlow 1.
    """
    if not layer.built:
        # Not inside a branch of the tf.cond, where variables cannot be created.
        layer.build(tuple(inputs.shape))
        for variable in layer.trainable_variables:
            variable.trainable = trainable
    options = {} if batch_weights is None else {"batch_weights": batch_weights}
    chosen = _known(training, argument)
    if chosen is not None:
        return layer(inputs, training=chosen, **options)
    return tf.cond(
        tf.cast(training, tf.bool),
        lambda: layer(inputs, training=True, **options),
        lambda: layer(inputs, training=False, **options),
    )


def _known(training: Any, argument: str) -> bool | None:
    """The value if it is known statically, otherwise None."""
    if isinstance(training, (bool, np.bool_)):
        return bool(training)
    if isinstance(training, int) and training in (0, 1):
        return bool(training)
    if not (tf.is_tensor(training) or isinstance(training, (tf.Variable, keras.Variable))):
        raise ValueError(
            f"{argument} must be a bool, 0 or 1, or a boolean scalar tensor. "
            f"Received: {argument}={training!r}"
        )
    tensor = tf.convert_to_tensor(training)
    if tensor.shape.rank not in (None, 0) or not (tensor.dtype.is_bool or tensor.dtype.is_integer):
        raise ValueError(
            f"{argument} must be a boolean scalar tensor. Received: {argument} of shape "
            f"{tensor.shape} and dtype {tensor.dtype.name}"
        )
    value = tf.get_static_value(tensor)
    return None if value is None else bool(value)
