"""Normalization by synchronized statistics: the one place where maths and communication meet.

Forward: local sums → one all-reduce → moments → normalize. Backward, through one custom gradient:
local gradient sums → one all-reduce → input gradient. Between the two only the inputs and O(C)
numbers are kept. The gradients of scale and offset stay local sums: the optimizer averages them
over ranks like every other gradient.

Two paths compute the same thing, with any communicator: TensorFlow operations (`moments.py`) on
every device, and C++ operations (`native/`) that make fewer passes over the tensor, on the CPU.
`devices.py` chooses.
"""

from typing import Any

import tensorflow as tf

from syncbn import devices, moments, telemetry
from syncbn.communicators.base import Communicator, unique_name
from syncbn.moments import Layout, Moments, MovingAverages
from syncbn.native.normalization import normalization


def batch_moments(
    inputs: tf.Tensor,
    layout: Layout,
    communicator: Communicator,
    name: str,
    weights: tf.Tensor | None = None,
) -> Moments:
    """The moments of the batch joined over all ranks: one all-reduce, no gradient.

    Args:
        inputs: This rank's shard, floating point, possibly without rows.
        layout: Says which axis holds the C channels.
        communicator: The group that shares its statistics.
        name: Stem of the collective's name, the same on every rank.
        weights: As in `moments.local`.
    """
    with tf.name_scope("moments"):
        values = tf.stop_gradient(inputs)
        values = tf.cast(values, moments.compute_dtype(values.dtype))
        wire = moments.local(values, layout, weights)
        wire = telemetry.all_reduce(
            communicator, wire, unique_name(f"{name}/forward"), "sync_batch_norm"
        )
        channels = inputs.shape[layout.axis]
        return moments.merge(wire, tf.shape(inputs)[layout.axis] if channels is None else channels)


def apply_moments(
    inputs: tf.Tensor,
    statistics: Moments,
    scale: tf.Tensor,
    offset: tf.Tensor,
    layout: Layout,
    epsilon: float,
    communicator: Communicator,
    name: str,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """Normalizes by the moments of the joined batch, whose gradient is part of this one's.

    The backward pass holds one all-reduce. `scale` and `offset` (shape (C,), compute dtype) may
    depend on the moments (renorm), but their gradient does not flow back through them.

    Returns:
        A tensor of the shape of `inputs` in the compute dtype (float32 for half precision).
    """
    dtype = moments.compute_dtype(inputs.dtype)

    def settled(values: tf.Tensor) -> tf.Tensor:
        """x − mean; a masked NaN or infinity counts as the mean, so that it reaches nobody."""
        centered = moments.center(tf.cast(values, dtype), layout, statistics)
        if weights is None:
            return centered
        keep = tf.logical_or(weights > 0, tf.math.is_finite(centered))
        return tf.where(keep, centered, tf.zeros_like(centered))

    @tf.custom_gradient
    def normalized(values: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> Any:
        factor = tf.cast(statistics.inverse_stddev(epsilon), dtype) * scale
        outputs = settled(values) * layout.spread(factor) + layout.spread(offset)

        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            centered = settled(values)
            first, second = moments.local_gradient_sums(upstream, centered, layout)
            wide = tf.cast(scale, tf.float64)
            wire = tf.concat([wide * first, wide * second], axis=0)
            wire = telemetry.all_reduce(
                communicator, wire, unique_name(f"{name}/backward"), "sync_batch_norm"
            )
            sums = tf.split(wire, 2)
            towards_inputs = moments.input_gradient(
                upstream, centered, layout, statistics, epsilon, scale, sums, weights
            )
            if weights is not None:
                reachable = tf.logical_or(weights > 0, tf.math.is_finite(tf.cast(values, dtype)))
                towards_inputs = tf.where(reachable, towards_inputs, tf.zeros_like(towards_inputs))
            return (
                moments.without_derivative(tf.cast(towards_inputs, values.dtype)),
                moments.without_derivative(
                    tf.cast(second * statistics.inverse_stddev(epsilon), dtype)
                ),
                moments.without_derivative(tf.cast(first, dtype)),
            )

        return outputs, gradients

    with tf.name_scope("normalize"):
        return normalized(inputs, scale, offset)


def synchronized_normalization(
    inputs: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    layout: Layout,
    epsilon: float,
    moving: MovingAverages,
    communicator: Communicator,
    name: str,
) -> tuple[tf.Tensor, Moments]:
    """Both steps at once, by the fastest path: unweighted inputs, scale and offset known.

    Returns:
        The outputs, in the compute dtype or in that of half-precision inputs, and the moments of
        the joined batch (no gradient).
    """
    operations = devices.native_operations()
    if operations is not None:
        return normalization(
            operations, inputs, scale, offset, layout, epsilon, moving, communicator, name
        )
    statistics = batch_moments(inputs, layout, communicator, name)
    outputs = apply_moments(inputs, statistics, scale, offset, layout, epsilon, communicator, name)
    return outputs, statistics
