"""Fused normalization: four C++ operations, with an all-reduce of any communicator in between.

Forward: local sums → all-reduce → normalize. Backward: gradient sums → all-reduce → input gradient.
"""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from syncbn.moments import NO_SECOND_DERIVATIVE, Moments, compute_dtype
from syncbn.moving_statistics import MovingStatistics, RenormStatistics
from syncbn.norm_context import NormContext, Rectifier

_IDENTITY = Rectifier(slope=1.0, cap=math.inf)


@tf.RegisterGradient("SyncbnGradientSums")
@tf.RegisterGradient("SyncbnInputGradient")
def _refuse(operation: tf.Operation, *_: tf.Tensor) -> None:
    raise LookupError(NO_SECOND_DERIVATIVE)


def fits(context: NormContext) -> bool:
    """Whether the operations support the weights: none, or one per position."""
    weights = context.weights
    return weights is None or weights.shape[context.layout.axis] == 1


def normalization(
    operations: Any,
    inputs: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    context: NormContext,
    moving: MovingStatistics,
    renorm: RenormStatistics | None = None,
) -> tuple[tf.Tensor, Moments]:
    """`normalize.synchronized_normalization` with the operations of `native`.

    The gradient of a residual before a rectifier is computed with the gradient sums, in the memory
    of dy if nothing else uses that, and the gradient of the inputs is computed from it.

    Half precision is read and written as such, computed in float32, and rounded once.

    Args:
        operations: The module of operations.
        inputs: Floating point, with a static number C of channels.
        scale: Shape (C,), compute dtype.
        offset: Shape (C,), compute dtype.
        context: The parameters; must satisfy `fits`.
        moving: The moving statistics before the step.
        renorm: The statistics of batch renormalization, if enabled.
    """
    channels = inputs.shape[context.layout.axis]
    layer = _Layer(operations, inputs, context, moving, None)
    wire = layer.local_sums(inputs)
    wire.set_shape([4 * channels + 2])
    wire = context.all_reduce(wire, "forward")
    corrected: dict[str, tf.Tensor] = {}
    if renorm is not None:
        r, d, corrected = _renorm(operations, wire, context.epsilon, moving, renorm, scale.dtype)
        scale, offset = r * scale, d * scale + offset

    def total(backward: tf.Tensor) -> tf.Tensor:
        backward.set_shape([2 * channels])
        return context.all_reduce(backward, "backward")

    outputs, moments, mean, variance = layer.normalize(inputs, wire, scale, offset, total)
    moments.set_shape([3 * channels + 1])
    moved = {"moving_mean": mean, "moving_variance": variance} | corrected
    moved = {name: tf.cast(value, moving.mean.dtype) for name, value in moved.items()}
    count, average, spread, rest = tf.split(moments, [1, channels, channels, channels])
    return outputs, Moments(count, average, spread, rest, moved)


def ghost_normalization(
    operations: Any,
    inputs: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    context: NormContext,
    moving: MovingStatistics,
    blocks: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Normalizes each of `blocks` equal parts of the first axis by its own moments.

    The other arguments are those of `normalization`.

    Args:
        blocks: An integer scalar.

    Returns:
        The outputs, and a float64 vector of shape (4C,): the number of non-empty blocks, and the
        sums of their means, variances and counts.
    """
    channels = inputs.shape[context.layout.axis]
    layer = _Layer(operations, inputs, context, moving, blocks)
    wire = layer.local_sums(inputs)
    outputs, moments, *_ = layer.normalize(inputs, wire, scale, offset, lambda backward: backward)
    sums = operations.syncbn_block_sums(moments=moments, channels=channels)
    sums.set_shape([4 * channels])
    return outputs, sums


def zero_debiased_update(
    operations: Any, batch: Moments, moving: MovingStatistics, biased: tf.Tensor, step: tf.Tensor
) -> dict[str, tf.Tensor]:
    """`moving_statistics.zero_debiased_update` with an operation of `native`."""
    names = ("moving_mean", "moving_mean_biased", "moving_mean_step")
    after = operations.syncbn_zero_debias(
        count=batch.count,
        mean=batch.mean,
        moving_mean=moving.mean,
        biased=biased,
        step=step,
        momentum=tf.constant(moving.momentum, tf.float64),
    )
    return dict(zip(names, after, strict=True))


class _Layer:
    """The operations with their common arguments."""

    def __init__(
        self,
        operations: Any,
        inputs: tf.Tensor,
        context: NormContext,
        moving: MovingStatistics,
        blocks: tf.Tensor | None,
    ) -> None:
        dtype = compute_dtype(inputs.dtype)
        numbers = [context.epsilon, moving.momentum, moving.bessel_correction]

        def options(rectifier: Rectifier) -> tf.Tensor:
            rest = [rectifier.slope, rectifier.cap]
            if blocks is None:
                return tf.constant([*numbers, 1, *rest], tf.float64)
            parts = (numbers, tf.cast([blocks], tf.float64), rest)
            return tf.concat([tf.convert_to_tensor(part, tf.float64) for part in parts], 0)

        self._operations = operations
        self._moving_mean = tf.cast(moving.mean, dtype)
        self._moving_variance = tf.cast(moving.variance, dtype)
        self._residual = context.residual
        # The gradient of a sum is that of its terms: nothing to compute without a rectifier.
        self._rectifies_sum = not (context.residual is None or context.rectifier is None)
        self._common = {
            "weights": _by_position(inputs, context, dtype),
            "options": options(context.rectifier or _IDENTITY),
            "axis": context.layout.axis,
        }
        self._common_after_rectifier = self._common
        if self._rectifies_sum:
            self._common_after_rectifier = {**self._common, "options": options(_IDENTITY)}

    def local_sums(self, inputs: tf.Tensor) -> tf.Tensor:
        """The vector to send for each block, concatenated."""
        return self._operations.syncbn_local_sums(x=tf.stop_gradient(inputs), **self._common)

    def normalize(
        self,
        inputs: tf.Tensor,
        wire: tf.Tensor,
        scale: tf.Tensor,
        offset: tf.Tensor,
        total: Callable[[tf.Tensor], tf.Tensor],
    ) -> list[tf.Tensor]:
        """Outputs; and without gradient: moments, next moving mean and variance.

        `total` sums the backward vector over all ranks.
        """
        operations, common = self._operations, self._common
        none = tf.zeros([0], inputs.dtype)

        @tf.custom_gradient
        def normalized(
            values: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, *residual: tf.Tensor
        ) -> Any:
            outputs, moments, *moved = operations.syncbn_normalize(
                x=values,
                wire=wire,
                scale=scale,
                offset=offset,
                moving_mean=self._moving_mean,
                moving_variance=self._moving_variance,
                residual=residual[0] if residual else none,
                **common,
            )

            def gradients(upstream: tf.Tensor, *_: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
                known = {"x": values, "moments": moments, "scale": scale, "offset": offset}
                backward, scale_gradient, offset_gradient, through = (
                    operations.syncbn_gradient_sums(
                        gradient=upstream,
                        residual=residual[0] if self._rectifies_sum else none,
                        **known,
                        **common,
                    )
                )
                if self._rectifies_sum:
                    upstream = through
                inputs_gradient = operations.syncbn_input_gradient(
                    gradient=upstream,
                    wire=total(backward),
                    **known,
                    **self._common_after_rectifier,
                )
                return (
                    inputs_gradient,
                    scale_gradient,
                    offset_gradient,
                    *(upstream for _ in residual),
                )

            return (outputs, moments, *moved), gradients

        residual = [] if self._residual is None else [self._residual]
        outputs, *statistics = normalized(inputs, scale, offset, *residual)
        return [outputs, *map(tf.stop_gradient, statistics)]


def _by_position(inputs: tf.Tensor, context: NormContext, dtype: tf.DType) -> tf.Tensor:
    """The weights, one number per position, or an empty vector."""
    if context.weights is None:
        return tf.zeros([0], dtype)
    shape = tf.unstack(tf.shape(inputs), num=context.layout.rank)
    shape[context.layout.axis] = tf.constant(1)
    weights = tf.broadcast_to(tf.cast(context.weights, dtype), tf.stack(shape))
    return tf.reshape(tf.stop_gradient(weights), [-1])


def _renorm(
    operations: Any,
    wire: tf.Tensor,
    epsilon: float,
    moving: MovingStatistics,
    renorm: RenormStatistics,
    dtype: tf.DType,
) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    """r and d, and the new statistics by weight name."""
    limits = renorm.clipping
    numbers = [epsilon, moving.momentum, moving.bessel_correction, renorm.momentum]
    for name, none in (("rmin", -math.inf), ("rmax", math.inf), ("dmax", math.inf)):
        limit = limits.get(name)
        numbers.append(none if limit is None else limit)
    r, d, *after = operations.syncbn_renorm(
        wire=wire,
        renorm_mean=tf.cast(renorm.mean, dtype),
        renorm_stddev=tf.cast(renorm.stddev, dtype),
        moving_stddev=tf.cast(renorm.moving_stddev, dtype),
        options=tf.constant(numbers, tf.float64),
    )
    names = ("renorm_mean", "renorm_stddev", "moving_stddev", "moving_variance")
    return tf.stop_gradient(r), tf.stop_gradient(d), dict(zip(names, after, strict=True))
