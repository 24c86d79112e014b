"""Normalization by synchronized statistics, combining `moments` with collectives.

Forward: local sums → one all-reduce → moments → normalize. Backward, through one custom gradient:
local gradient sums → one all-reduce → input gradient. Only the inputs, the residual if a rectifier
follows, and O(C) numbers are stored between the two. The gradients of scale and offset are local
sums: the optimizer averages them over ranks like every other gradient.

Two implementations, same result, with any communicator: TensorFlow operations (`moments.py`) on
every device, and fused C++ operations (`native/fused.py`), which make fewer passes over the tensor,
on the CPU. `dispatch.py` chooses.
"""

from typing import Any

import tensorflow as tf

from syncbn import dispatch, moments, moving_statistics, residuals
from syncbn.moments import Layout, Moments
from syncbn.moving_statistics import MovingStatistics, RenormStatistics, renorm_correction
from syncbn.native import fused
from syncbn.norm_context import NormContext


def batch_moments(inputs: tf.Tensor, context: NormContext) -> Moments:
    """The moments of the global batch: one all-reduce, no gradient.

    Args:
        inputs: This rank's shard, floating point, possibly without rows.
        context: Layout, communicator, name and weights.
    """
    with tf.name_scope("moments"):
        values = tf.stop_gradient(inputs)
        values = tf.cast(values, moments.compute_dtype(values.dtype))
        wire = moments.local(values, context.layout, context.weights)
        wire = context.all_reduce(wire, "forward")
        axis = context.layout.axis
        channels = inputs.shape[axis]
        return moments.merge(wire, tf.shape(inputs)[axis] if channels is None else channels)


def apply_moments(
    inputs: tf.Tensor,
    statistics: Moments,
    scale: tf.Tensor,
    offset: tf.Tensor,
    context: NormContext,
) -> tf.Tensor:
    """Normalizes by the moments of the global batch; the gradient includes that of the moments.

    Adds the residual and applies the rectifier of the context. The backward pass contains one
    all-reduce. `scale` and `offset` (shape (C,), compute dtype) may depend on the moments (renorm),
    but no gradient flows through that dependency.

    Returns:
        A tensor of the shape of `inputs` in the compute dtype (float32 for half precision).
    """
    dtype = moments.compute_dtype(inputs.dtype)
    layout, epsilon, weights = context.layout, context.epsilon, context.weights
    rectifier = context.rectifier

    def center(values: tf.Tensor) -> tf.Tensor:
        """x − mean, and 0 where a masked input is NaN or infinite."""
        centered = moments.center(tf.cast(values, dtype), layout, statistics)
        if weights is None:
            return centered
        keep = tf.logical_or(weights > 0, tf.math.is_finite(centered))
        return tf.where(keep, centered, tf.zeros_like(centered))

    @tf.custom_gradient
    def normalized(
        values: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, *residual: tf.Tensor
    ) -> Any:
        factor = tf.cast(statistics.inverse_stddev(epsilon), dtype) * scale

        def total(centered: tf.Tensor) -> tf.Tensor:
            """The values before the rectifier."""
            scaled = centered * layout.spread(factor) + layout.spread(offset)
            return residuals.add(scaled, *residual)

        outputs = total(center(values))
        if rectifier is not None:
            outputs = rectifier(outputs)

        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            centered = center(values)
            if rectifier is not None:
                upstream = rectifier.gradient(total(centered), upstream)
            first, second = moments.local_gradient_sums(upstream, centered, layout)
            wide = tf.cast(scale, tf.float64)
            wire = tf.concat([wide * first, wide * second], axis=0)
            sums = tf.split(context.all_reduce(wire, "backward"), 2)
            inputs_gradient = moments.input_gradient(
                upstream, centered, layout, statistics, epsilon, scale, sums, weights
            )
            if weights is not None:
                reachable = tf.logical_or(weights > 0, tf.math.is_finite(tf.cast(values, dtype)))
                inputs_gradient = tf.where(
                    reachable, inputs_gradient, tf.zeros_like(inputs_gradient)
                )
            return (
                moments.without_derivative(tf.cast(inputs_gradient, values.dtype)),
                moments.without_derivative(
                    tf.cast(second * statistics.inverse_stddev(epsilon), dtype)
                ),
                moments.without_derivative(tf.cast(first, dtype)),
                *(moments.without_derivative(tf.cast(upstream, r.dtype)) for r in residual),
            )

        return outputs, gradients

    residual = [] if context.residual is None else [context.residual]
    with tf.name_scope("normalize"):
        return normalized(inputs, scale, offset, *residual)


def synchronized_normalization(
    inputs: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    context: NormContext,
    moving: MovingStatistics,
    renorm: RenormStatistics | None = None,
) -> tuple[tf.Tensor, Moments]:
    """Computes the moments and normalizes, with the implementation that `dispatch` chooses.

    With `renorm` outputs are (x̂·r + d)·scale + offset; the context's residual and rectifier follow.

    Returns:
        The outputs, in the compute dtype or in that of half-precision inputs, and the moments of
        the global batch (no gradient).
    """
    operations = dispatch.native_operations()
    if operations is not None and fused.fits(context):
        return fused.normalization(operations, inputs, scale, offset, context, moving, renorm)
    statistics = batch_moments(inputs, context)
    if renorm is not None:
        r, d = renorm_correction(statistics, renorm, context.epsilon, scale.dtype)
        scale, offset = r * scale, d * scale + offset
    return apply_moments(inputs, statistics, scale, offset, context), statistics


def zero_debiased_update(
    batch: Moments, moving: MovingStatistics, biased: tf.Tensor, step: tf.Tensor
) -> dict[str, tf.Tensor]:
    """`moving_statistics.zero_debiased_update` by the implementation that `dispatch` chooses."""
    operations = dispatch.native_operations()
    if operations is None or moving.mean.dtype not in (tf.float32, tf.float64):
        return moving_statistics.zero_debiased_update(batch, moving, biased, step)
    return fused.zero_debiased_update(operations, batch, moving, biased, step)


def by_moving_statistics(
    inputs: tf.Tensor,
    moving: MovingStatistics,
    scale: tf.Tensor,
    offset: tf.Tensor,
    layout: Layout,
    epsilon: float,
) -> tf.Tensor:
    """Inference: (inputs − mean)/√(variance + ε)·scale + offset, without communication.

    `scale` and `offset` (shape (C,)) are of the compute dtype, like the result.
    """
    dtype = scale.dtype
    variance = tf.cast(moving.variance, dtype)
    factor = tf.math.rsqrt(variance + tf.constant(epsilon, dtype)) * scale
    # Folding the mean into the offset instead would lose the precision of inputs far from zero.
    centered = tf.cast(inputs, dtype) - layout.spread(tf.cast(moving.mean, dtype))
    return centered * layout.spread(factor) + layout.spread(offset)
