"""Synchronized moments, for programs with their own batch normalization.

docs/tensorflow1.md shows a complete one, with moving averages and a train_phase switch.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from syncbn import moments as statistics
from syncbn import normalize
from syncbn.communicators import resolve
from syncbn.communicators.base import unique_name
from syncbn.legacy.switch import floating_inputs
from syncbn.norm_context import NormContext


@tf.autograph.experimental.do_not_convert
def moments(
    inputs: Any,
    axes: int | Sequence[int],
    shift: Any = None,
    name: str | None = None,
    keep_dims: bool | None = None,
    keepdims: bool | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and population variance over `axes` and over all ranks, weighted by counts.

    `tf.nn.moments`, synchronized: one all-reduce forward and one backward. The gradient is that of
    the sum of the losses of all ranks, so gradients can be averaged as usual. Every rank of a job
    must call it, in the same order; shards may be uneven or empty.

    Args:
        inputs: Floating point, any rank; the axes not reduced must have static sizes.
        axes: The axes to reduce, for example [0, 1, 2].
        shift: Ignored; sums are always taken about a pivot near the data.
        name: Name of the collective, the same on every rank.
        keep_dims: Keep the reduced axes, with size 1.
        keepdims: The same as `keep_dims`.

    Returns:
        Mean and variance, in the dtype of `inputs`.

    Raises:
        ValueError: `inputs` is not floating point, an axis is out of range or given twice, or an
            axis that is not reduced has no static size.
    """
    del shift
    inputs = floating_inputs(inputs)
    rank = inputs.shape.rank
    given = [axes] if isinstance(axes, int) else list(axes)
    reduced = [axis % rank for axis in given if -rank <= axis < rank]
    if not given or len(reduced) != len(given) or len(set(reduced)) != len(reduced):
        raise ValueError(
            f"axes must be different integers in [{-rank}, {rank}). Received: axes={axes!r}, "
            f"inputs of shape {inputs.shape}"
        )
    channel_axes = [axis for axis in range(rank) if axis not in reduced]
    sizes = [inputs.shape[axis] for axis in channel_axes]
    if None in sizes:
        raise ValueError(
            "the axes that are not reduced must have static sizes. Received: "
            f"axes={axes!r}, inputs of shape {inputs.shape}"
        )
    rows = tf.transpose(inputs, [*reduced, *channel_axes])
    channels = 1
    for size in sizes:
        channels *= size
    joined = _joined(tf.reshape(rows, [-1, channels]), name or "legacy/moments")
    shape = [1 if axis in reduced else inputs.shape[axis] for axis in range(rank)]
    shape = shape if keep_dims or keepdims else sizes
    mean, variance = (tf.cast(tf.reshape(value, shape), inputs.dtype) for value in joined)
    return mean, variance


def _joined(rows: tf.Tensor, name: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of (rows, C) over all ranks, shape (C,), in the compute dtype."""
    layout = statistics.Layout(rank=2, axis=1)
    context = NormContext(layout, 0.0, resolve("auto"), name)
    dtype = statistics.compute_dtype(rows.dtype)

    @tf.custom_gradient
    def with_gradient(values: tf.Tensor) -> Any:
        joined = normalize.batch_moments(values, context)

        def gradient(mean_gradient: tf.Tensor, variance_gradient: tf.Tensor) -> tf.Tensor:
            wire = tf.cast(tf.concat([mean_gradient, variance_gradient], axis=0), tf.float64)
            wire = context.communicator.all_reduce(wire, unique_name(f"{name}/backward"))
            first, second = tf.split(wire * tf.tile(joined.inverse_count, [wire.shape[0]]), 2)
            centered = statistics.center(values, layout, joined)
            return tf.cast(first, dtype) + 2.0 * tf.cast(second, dtype) * centered

        return (tf.cast(joined.mean, dtype), tf.cast(joined.variance, dtype)), gradient

    return with_gradient(tf.cast(rows, dtype))
