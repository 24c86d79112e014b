"""Updates of the moving statistics: pure functions, without gradient.

Their inputs are moments over all ranks, so the results are bitwise equal on all ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import tensorflow as tf

from syncbn.moments import Moments


@dataclass(frozen=True)
class MovingStatistics:
    """The moving statistics of a layer before a step, each of shape (C,), and their options.

    Attributes:
        mean: Moving mean.
        variance: Moving variance, of the same dtype.
        momentum: Weight of the old value.
        bessel_correction: Whether the variance is updated with the unbiased estimate.
    """

    mean: tf.Tensor
    variance: tf.Tensor
    momentum: float
    bessel_correction: bool


@dataclass(frozen=True)
class RenormStatistics:
    """The statistics of batch renormalization before a step, each of shape (C,).

    Attributes:
        mean: `renorm_mean` of the layer.
        stddev: `renorm_stddev` of the layer, the moving average of √(variance + ε).
        moving_stddev: Like `stddev`, with the momentum of the layer; gives the moving variance.
        momentum: Momentum of `mean` and `stddev`.
        clipping: Limits `rmin`, `rmax`, `dmax`; absent or None means no limit.
    """

    mean: tf.Tensor
    stddev: tf.Tensor
    moving_stddev: tf.Tensor
    momentum: float
    clipping: Mapping[str, float]


def update(
    batch: Moments, moving: MovingStatistics, renorm: RenormStatistics | None, epsilon: float
) -> dict[str, tf.Tensor]:
    """The statistics after a step, as in Keras.

    Returns:
        The new values by weight name.
    """
    variance = _target_variance(batch, moving)
    after = {"moving_mean": _moved(moving.mean, batch.mean, moving.momentum, batch)}
    if renorm is None:
        after["moving_variance"] = _moved(moving.variance, variance, moving.momentum, batch)
        return after
    stddev = tf.sqrt(variance + tf.constant(epsilon, tf.float64))
    tracked = _moved(renorm.moving_stddev, stddev, moving.momentum, batch)
    return after | {
        "renorm_mean": _moved(renorm.mean, batch.mean, renorm.momentum, batch),
        "renorm_stddev": _moved(renorm.stddev, stddev, renorm.momentum, batch),
        "moving_stddev": tracked,
        "moving_variance": tf.nn.relu(tracked * tracked - epsilon),
    }


def zero_debiased_update(
    batch: Moments, moving: MovingStatistics, biased: tf.Tensor, step: tf.Tensor
) -> dict[str, tf.Tensor]:
    """The moving mean with the bias of its initial zero removed.

    Section 3 of Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980.

    Args:
        batch: Moments of the global batch.
        moving: The moving statistics before the step.
        biased: The moving mean that started from zero, shape (C,).
        step: Number of steps in which each channel had samples, shape (C,).

    Returns:
        The new values by weight name.
    """
    counted = batch.count > 0.0
    biased = _moved(biased, batch.mean, moving.momentum, batch)
    step += tf.cast(counted, step.dtype)
    # In float64: 1 − 0.99, at the first step, has two digits fewer than 0.99.
    weight = 1.0 - tf.pow(tf.constant(moving.momentum, tf.float64), tf.cast(step, tf.float64))
    debiased = tf.math.divide_no_nan(biased, tf.cast(weight, biased.dtype))
    return {
        "moving_mean": tf.where(counted, debiased, moving.mean),
        "moving_mean_biased": biased,
        "moving_mean_step": step,
    }


def _moved(now: tf.Tensor, target: tf.Tensor, momentum: float, batch: Moments) -> tf.Tensor:
    """`now·momentum + target·(1 − momentum)`; unchanged in channels without samples."""
    after = now * momentum + tf.cast(target, now.dtype) * (1.0 - momentum)
    return tf.where(batch.count > 0.0, after, now)


def _target_variance(batch: Moments, moving: MovingStatistics) -> tf.Tensor:
    """The population or unbiased variance of the batch, float64, shape (C,)."""
    if not moving.bessel_correction:
        return batch.variance
    freedom = tf.maximum(batch.count - 1.0, 0.0)
    unbiased = tf.math.divide_no_nan(batch.count, freedom)
    return tf.where(freedom > 0.0, batch.variance * unbiased, batch.variance)


def renorm_correction(
    batch: Moments,
    renorm: RenormStatistics,
    epsilon: float,
    dtype: tf.DType,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The corrections r and d of batch renormalization, shape (C,); outputs `(x̂·r + d)·γ + β`.

    Algorithm 1 of Ioffe, 2017, https://arxiv.org/abs/1702.03275.

    Args:
        batch: Moments of the global batch.
        renorm: The renorm statistics before the step.
        epsilon: Added to the variance.
        dtype: Dtype of the result.
    """
    clipping = renorm.clipping
    wide_epsilon = tf.constant(epsilon, tf.float64)
    stddev = tf.sqrt(batch.variance + wide_epsilon)
    # Early in training the moving standard deviation may be near zero.
    tracked = tf.maximum(tf.cast(renorm.stddev, tf.float64), tf.sqrt(wide_epsilon))
    r = stddev / tracked
    d = (batch.mean - tf.cast(renorm.mean, tf.float64)) / tracked
    if clipping.get("rmin") is not None:
        r = tf.maximum(r, tf.constant(clipping["rmin"], r.dtype))
    if clipping.get("rmax") is not None:
        r = tf.minimum(r, tf.constant(clipping["rmax"], r.dtype))
    if clipping.get("dmax") is not None:
        d = tf.clip_by_value(d, -clipping["dmax"], clipping["dmax"])
    return tf.stop_gradient(tf.cast(r, dtype)), tf.stop_gradient(tf.cast(d, dtype))
