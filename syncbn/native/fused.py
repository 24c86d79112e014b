"""Fused normalization: four C++ operations, with any communicator's sums between them.

Forward: local sums → all-reduce → normalize. Backward: gradient sums → all-reduce → input gradient.
"""

from typing import Any

import tensorflow as tf

from syncbn.moments import NO_SECOND_DERIVATIVE, Moments, compute_dtype
from syncbn.moving_statistics import MovingStatistics
from syncbn.norm_context import NormContext


@tf.RegisterGradient("SyncbnGradientSums")
@tf.RegisterGradient("SyncbnInputGradient")
def _refuse(operation: tf.Operation, *_: tf.Tensor) -> None:
    raise LookupError(NO_SECOND_DERIVATIVE)


def normalization(
    operations: Any,
    inputs: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    context: NormContext,
    moving: MovingStatistics,
) -> tuple[tf.Tensor, Moments]:
    """What `normalize.synchronized_normalization` returns, by the operations of `native`.

    Half precision stays as it is: read and written as such, computed in float32, rounded once.
    """
    axis = context.layout.axis
    channels = inputs.shape[axis]
    dtype = compute_dtype(inputs.dtype)
    options = tf.constant([context.epsilon, moving.momentum, moving.bessel_correction], tf.float64)
    mean, variance = tf.cast(moving.mean, dtype), tf.cast(moving.variance, dtype)

    def total(wire: tf.Tensor, direction: str, length: int) -> tf.Tensor:
        wire.set_shape([length])
        return context.all_reduce(wire, direction)

    @tf.custom_gradient
    def normalized(values: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> Any:
        wire = operations.syncbn_local_sums(x=values, axis=axis)
        wire = total(wire, "forward", 4 * channels + 2)
        outputs, moments, *moved = operations.syncbn_normalize(
            x=values,
            wire=wire,
            scale=scale,
            offset=offset,
            moving_mean=mean,
            moving_variance=variance,
            options=options,
            axis=axis,
        )
        moments.set_shape([3 * channels + 1])

        def gradients(
            upstream: tf.Tensor, *_: tf.Tensor | None
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            wire, towards_scale, towards_offset = operations.syncbn_gradient_sums(
                gradient=upstream,
                x=values,
                moments=moments,
                scale=scale,
                options=options,
                axis=axis,
            )
            wire = total(wire, "backward", 2 * channels)
            towards_inputs = operations.syncbn_input_gradient(
                gradient=upstream,
                x=values,
                moments=moments,
                scale=scale,
                wire=wire,
                options=options,
                axis=axis,
            )
            return towards_inputs, towards_scale, towards_offset

        return (outputs, moments, *moved), gradients

    outputs, moments, *moved = normalized(inputs, scale, offset)
    moments = tf.stop_gradient(moments)
    moved_mean, moved_variance = (
        tf.stop_gradient(tf.cast(value, moving.mean.dtype)) for value in moved
    )
    count, average, variance, rest = tf.split(moments, [1, channels, channels, channels])
    return outputs, Moments(count, average, variance, rest, (moved_mean, moved_variance))
