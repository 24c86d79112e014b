"""The moving statistics of a layer, fed by reduced moments only: equal on all ranks, bit for bit.

Nothing here carries a gradient.
"""

from typing import TYPE_CHECKING

import tensorflow as tf

from syncbn.moments import Moments, MovingAverages

if TYPE_CHECKING:
    from syncbn.layer import SyncBatchNormalization


def of(layer: "SyncBatchNormalization") -> MovingAverages:
    """The plain moving averages of the layer, as they are now."""
    return MovingAverages(
        tf.convert_to_tensor(layer.moving_mean),
        tf.convert_to_tensor(layer.moving_variance),
        layer.momentum,
        layer.bessel_correction,
    )


def update(layer: "SyncBatchNormalization", statistics: Moments) -> None:
    """Moves the layer's moving statistics towards those of the joined batch.

    `moving = moving·momentum + batch·(1 − momentum)`, as in Keras. Channels that nobody counted
    keep theirs.
    """
    if statistics.moved is not None and not (layer.renorm or layer.zero_debias_moving_mean):
        layer.moving_mean.assign(statistics.moved[0])
        layer.moving_variance.assign(statistics.moved[1])
        return
    dtype = layer.moving_mean.dtype
    variance = statistics.variance
    if layer.bessel_correction:
        freedom = tf.maximum(statistics.count - 1.0, 0.0)
        unbiased = tf.math.divide_no_nan(statistics.count, freedom)
        variance = tf.where(freedom > 0.0, variance * unbiased, variance)
    mean = tf.cast(statistics.mean, dtype)
    counted = statistics.count > 0.0

    def move(variable: tf.Variable, target: tf.Tensor, momentum: float) -> tf.Tensor:
        now = tf.convert_to_tensor(variable)
        moved = tf.where(counted, now * momentum + target * (1.0 - momentum), now)
        variable.assign(moved)
        return moved

    if layer.zero_debias_moving_mean:
        _move_without_bias(layer, mean, counted)
    else:
        move(layer.moving_mean, mean, layer.momentum)
    if not layer.renorm:
        move(layer.moving_variance, tf.cast(variance, dtype), layer.momentum)
        return
    stddev = tf.cast(tf.sqrt(variance + tf.constant(layer.epsilon, tf.float64)), dtype)
    move(layer.renorm_mean, mean, layer.renorm_momentum)
    move(layer.renorm_stddev, stddev, layer.renorm_momentum)
    moved = move(layer.moving_stddev, stddev, layer.momentum)
    layer.moving_variance.assign(tf.nn.relu(moved * moved - layer.epsilon))


def _move_without_bias(
    layer: "SyncBatchNormalization", mean: tf.Tensor, counted: tf.Tensor
) -> None:
    """The zero-debiased moving mean of Kingma and Ba (2015), section 3."""
    momentum = layer.momentum
    biased = tf.convert_to_tensor(layer.moving_mean_biased)
    biased = tf.where(counted, biased * momentum + mean * (1.0 - momentum), biased)
    now, step = (tf.convert_to_tensor(v) for v in (layer.moving_mean, layer.moving_mean_step))
    step += tf.cast(counted, step.dtype)
    # In float64: at the first step 1 − 0.99 has two digits less than 0.99.
    weight = 1.0 - tf.pow(tf.constant(momentum, tf.float64), tf.cast(step, tf.float64))
    layer.moving_mean_biased.assign(biased)
    layer.moving_mean_step.assign(step)
    debiased = tf.math.divide_no_nan(biased, tf.cast(weight, biased.dtype))
    layer.moving_mean.assign(tf.where(counted, debiased, now))


def renorm_correction(
    layer: "SyncBatchNormalization", statistics: Moments, dtype: tf.DType
) -> tuple[tf.Tensor, tf.Tensor]:
    """The corrections r and d of batch renormalization (Ioffe, 2017, algorithm 1), shape (C,).

    Outputs are `(x̂·r + d)·γ + β`. Computed from the statistics before their update.
    """
    limits = layer.renorm_clipping or {}
    epsilon = tf.constant(layer.epsilon, tf.float64)
    stddev = tf.sqrt(statistics.variance + epsilon)
    # Early in training the tracked deviation may still be near zero.
    tracked = tf.maximum(tf.cast(layer.renorm_stddev, tf.float64), tf.sqrt(epsilon))
    r = stddev / tracked
    d = (statistics.mean - tf.cast(layer.renorm_mean, tf.float64)) / tracked
    if limits.get("rmin") is not None:
        r = tf.maximum(r, tf.constant(limits["rmin"], r.dtype))
    if limits.get("rmax") is not None:
        r = tf.minimum(r, tf.constant(limits["rmax"], r.dtype))
    if limits.get("dmax") is not None:
        d = tf.clip_by_value(d, -limits["dmax"], limits["dmax"])
    return tf.stop_gradient(tf.cast(r, dtype)), tf.stop_gradient(tf.cast(d, dtype))
