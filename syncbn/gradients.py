"""Averages a list of gradients over the ranks in one fused all-reduce.

Used by `optimizer` and `tape`; independent of Keras optimizers.
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
        presence: float32 vector, the number of ranks with a gradient for each variable.
    """

    gradients: list[tf.Tensor]
    presence: tf.Tensor


def wire_dtype(compression: str | None) -> tf.DType | None:
    """The dtype in which gradients are sent; None for their own.

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
    """A dense gradient of the variable's shape; zeros for None.

    All ranks must send messages of the same layout. So a variable without gradient on this rank
    contributes zeros, and an `IndexedSlices` (the gradient of an embedding), whose rows differ
    between ranks, becomes dense.
    """
    if gradient is None:
        return tf.zeros(variable.shape, tf.as_dtype(variable.dtype))
    return tf.convert_to_tensor(gradient)


def presence_of(gradients: Sequence[Gradient]) -> tf.Tensor:
    """float32 vector: 1 for each gradient that exists on this rank, otherwise 0."""
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
        weight: float32 scalar, the weight of this rank: its number of rows if the loss is summed
            over rows, 1 if it is a mean. If zero, the gradients are ignored.
        communicator: The ranks to reduce over.
        name: Name of the collective.
        average: Whether to divide by the sum of the weights.
        wire: Half-precision dtype to send in, or None. The weights are then reduced first, and
            gradients are divided before they are sent, so that their sum cannot overflow.

    Returns:
        `Reduced`, bitwise equal on every rank, in the gradients' own dtypes.
    """
    header = tf.concat([tf.reshape(weight, [1]), presence], axis=0)
    # An empty batch contributes zero; its mean loss, and so its gradient, is NaN.
    valid = [tf.where(weight > 0, g, tf.zeros_like(g)) for g in gradients]
    if wire is None:
        header, *sums = telemetry.all_reduce_many(communicator, [header, *valid], name, "gradients")
        if average:
            sums = [divide(total, header[0]) for total in sums]
    else:
        header = telemetry.all_reduce(communicator, header, f"{name}_weights", "gradients")
        if average:
            valid = [divide(gradient, header[0]) for gradient in valid]
        sent = [tf.cast(gradient, wire) for gradient in valid]
        received = telemetry.all_reduce_many(communicator, sent, name, "gradients")
        sums = [tf.cast(r, g.dtype) for r, g in zip(received, gradients, strict=True)]
    return Reduced(sums, header[1:])


def divide(gradient: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    """`gradient / total`; if `total` is zero, the gradient itself, which is zero too."""
    return tf.convert_to_tensor(gradient) / tf.cast(
        tf.where(total > 0, total, tf.ones_like(total)), gradient.dtype
    )


def keras_reduces() -> bool:
    """Whether this code runs under a tf.distribute strategy with several replicas."""
    return tf.distribute.has_strategy() and tf.distribute.get_strategy().num_replicas_in_sync > 1
