"""Averages a list of gradients over the ranks in one fused all-reduce.

Stands between `training` (the Keras surface) and the communicators; knows no optimizer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from syncbn import telemetry
from syncbn.communicators.base import Communicator

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices | None

COMPRESSIONS = {None: None, "float16": tf.float16, "bfloat16": tf.bfloat16}


class Reduced(NamedTuple):
    """Gradients equal on every rank.

    Attributes:
        gradients: One dense tensor per variable, of the variable's shape.
        presence: float32 vector; how many ranks had a gradient for each variable.
    """

    gradients: list[tf.Tensor]
    presence: tf.Tensor


def wire_dtype(compression: str | None) -> tf.DType | None:
    """The dtype gradients travel in, None for their own.

    Raises:
        ValueError: `compression` is not None, `"float16"` or `"bfloat16"`.
    """
    if compression not in COMPRESSIONS:
        raise ValueError(
            'compression must be None, "float16" or "bfloat16". '
            f"Received: compression={compression!r}"
        )
    return COMPRESSIONS[compression]


def densify(gradient: Gradient, variable: Any) -> tf.Tensor:
    """A dense gradient of the variable's shape; zeros where there is none.

    Every rank must send the same message, so a variable that one rank's loss does not reach still
    takes its place in it, and the rows of an `IndexedSlices` (an embedding's gradient), which
    differ between ranks, are scattered first.
    """
    if gradient is None:
        return tf.zeros(variable.shape, tf.as_dtype(variable.dtype))
    return tf.convert_to_tensor(gradient)


def presence_of(gradients: Sequence[Gradient]) -> tf.Tensor:
    """float32 vector: 1 where this rank has a gradient, 0 where it has none."""
    return tf.constant([float(gradient is not None) for gradient in gradients], tf.float32)


def reduce_gradients(
    gradients: Sequence[tf.Tensor],
    presence: tf.Tensor,
    weight: tf.Tensor,
    communicator: Communicator,
    name: str,
    average: bool = True,
    wire: tf.DType | None = None,
) -> Reduced:
    """Σ gradients / Σ weights over the ranks, or Σ gradients alone.

    Args:
        gradients: Dense tensors, the same shapes and dtypes on every rank.
        presence: float32 vector, one entry per gradient: see `presence_of`.
        weight: float32 scalar. What this rank's gradients are a sum of: its rows, if they are of
            the loss summed over rows; 1 for a mean. May be zero, whatever the gradients then hold.
        communicator: Where the ranks meet.
        name: Name of the collective.
        average: Whether to divide.
        wire: Half-precision dtype to send in. The weights then travel first, so that what is
            sent is already scaled down to the size of the average and cannot overflow.

    Returns:
        `Reduced`, bitwise equal on every rank, in the gradients' own dtypes.
    """
    head = tf.concat([tf.reshape(weight, [1]), presence], axis=0)
    # The mean loss of no rows is NaN; of no rows nothing must come.
    counted = [tf.where(weight > 0, g, tf.zeros_like(g)) for g in gradients]
    if wire is None:
        head, *sums = telemetry.all_reduce_many(communicator, [head, *counted], name, "gradients")
        if average:
            sums = [divide(total, head[0]) for total in sums]
    else:
        head = telemetry.all_reduce(communicator, head, f"{name}_weights", "gradients")
        if average:
            counted = [divide(gradient, head[0]) for gradient in counted]
        sent = [tf.cast(gradient, wire) for gradient in counted]
        received = telemetry.all_reduce_many(communicator, sent, name, "gradients")
        sums = [tf.cast(r, g.dtype) for r, g in zip(received, gradients, strict=True)]
    return Reduced(sums, head[1:])


def divide(gradient: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    """`gradient / total`; where no rank has a row, the gradient, which is zero."""
    return tf.convert_to_tensor(gradient) / tf.cast(
        tf.where(total > 0, total, tf.ones_like(total)), gradient.dtype
    )


def keras_reduces() -> bool:
    """Whether we run as one of several replicas of a tf.distribute strategy."""
    return tf.distribute.has_strategy() and tf.distribute.get_strategy().num_replicas_in_sync > 1
