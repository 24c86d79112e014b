"""How moving statistics follow those of the batch: pure functions, without gradient.

They are fed by reduced moments only, so they stay equal on all ranks, bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import tensorflow as tf

from syncbn.moments import Moments


@dataclass(frozen=True)
class MovingStatistics:
    """The moving statistics of a layer before a step, each of shape (C,), and how they move.

    Attributes:
        mean: Moving mean.
        variance: Moving variance, same dtype as all others.
        momentum: Share of the old value.
        bessel_correction: Whether the variance moves towards the unbiased estimate.
    """

    mean: tf.Tensor
    variance: tf.Tensor
    momentum: float
    bessel_correction: bool


@dataclass(frozen=True)
class RenormStatistics:
    """What batch renormalization corrects towards, each of shape (C,), before a step.

    Attributes:
        mean: `renorm_mean` of the layer.
        stddev: `renorm_stddev` of the layer, the same of √(variance + ε).
        moving_stddev: What the moving variance is computed from.
        momentum: Of the first two.
        clipping: Limits `rmin`, `rmax`, `dmax`; those that are absent or None do not limit.
    """

    mean: tf.Tensor
    stddev: tf.Tensor
    moving_stddev: tf.Tensor
    momentum: float
    clipping: Mapping[str, float]


def update(
    batch: Moments, moving: MovingStatistics, renorm: RenormStatistics | None, epsilon: float
) -> dict[str, tf.Tensor]:
    """What the statistics are after a step, as in Keras.

    Returns:
        The weights of the layer after the step, by their names.
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
    """The moving mean without the weight of its initial zero (Kingma and Ba, 2015, section 3).

    Args:
        batch: Moments of the joined batch.
        moving: Before the step.
        biased: The moving mean that began with zero, shape (C,).
        step: How many steps have counted each channel, shape (C,).

    Returns:
        The weights of the layer after the step, by their names.
    """
    counted = batch.count > 0.0
    biased = _moved(biased, batch.mean, moving.momentum, batch)
    step += tf.cast(counted, step.dtype)
    # In float64: at the first step 1 − 0.99 has two digits less than 0.99.
    weight = 1.0 - tf.pow(tf.constant(moving.momentum, tf.float64), tf.cast(step, tf.float64))
    debiased = tf.math.divide_no_nan(biased, tf.cast(weight, biased.dtype))
    return {
        "moving_mean": tf.where(counted, debiased, moving.mean),
        "moving_mean_biased": biased,
        "moving_mean_step": step,
    }


def _moved(now: tf.Tensor, target: tf.Tensor, momentum: float, batch: Moments) -> tf.Tensor:
    """`now·momentum + target·(1 − momentum)`; `now` in channels without samples."""
    after = now * momentum + tf.cast(target, now.dtype) * (1.0 - momentum)
    return tf.where(batch.count > 0.0, after, now)


def _target_variance(batch: Moments, moving: MovingStatistics) -> tf.Tensor:
    """What the moving variance follows, float64, shape (C,): population or unbiased variance."""
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
    """The corrections r and d of batch renormalization (Ioffe, 2017, algorithm 1), shape (C,).

    Outputs are `(x̂·r + d)·γ + β`.

    Args:
        batch: Moments of the joined batch.
        renorm: What they are corrected towards, before its update.
        epsilon: Added to the variance.
        dtype: Of the result.
    """
    clipping = renorm.clipping
    wide_epsilon = tf.constant(epsilon, tf.float64)
    stddev = tf.sqrt(batch.variance + wide_epsilon)
    # Early in training the tracked deviation may still be near zero.
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
