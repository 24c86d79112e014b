"""One call of a layer under TensorFlow 1's rules: the training switch, dtypes, what is trained."""

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
    """That of the inputs; half precision keeps float32 variables, as it did."""
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
    """The outputs, with `training` a Python bool, 0 or 1, or a boolean scalar tensor.

    A tensor becomes a `tf.cond`; every rank must give the same value, or the ranks wait for one
    another's statistics for ever.

    Args:
        trainable: False keeps beta and gamma out of `trainable_variables`; the statistics move
            nevertheless, as they did in TensorFlow 1.
    """
    if not layer.built:
        # Not inside a branch of the switch, where variables cannot be made.
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
    """The value where it is known now, None for a tensor that is known at run time."""
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
