"""Assigns converged values to the moving statistics of a layer."""

import math
from typing import Any

import keras
import numpy as np


def assign_statistics(
    layer: keras.layers.BatchNormalization, mean: np.ndarray, variance: np.ndarray
) -> None:
    """Sets all moving statistics to their limits for constant batch statistics.

    Args:
        layer: A built Keras or syncbn layer.
        mean: Mean of the batches, shape (C,).
        variance: Population or unbiased variance of the batches, shape (C,).
    """
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    assign_renorm(layer, mean, variance)
    assign_debiasing(layer, mean)


def assign_renorm(layer: Any, mean: np.ndarray, variance: np.ndarray) -> None:
    """The same for the statistics of batch renormalization, if enabled."""
    if layer.renorm:
        stddev = np.sqrt(np.asarray(variance, np.float64) + layer.epsilon)
        layer.moving_stddev.assign(stddev)
        layer.renorm_mean.assign(mean)
        layer.renorm_stddev.assign(stddev)


def assign_debiasing(layer: Any, mean: np.ndarray) -> None:
    """The same for a zero-debiased moving mean, which would otherwise start from zero."""
    if not getattr(layer, "zero_debias_moving_mean", False):
        return
    # After this many steps the weight of the initial zero is below float32 precision.
    steps = math.ceil(math.log(1e-9) / math.log(layer.momentum)) if 0 < layer.momentum < 1 else 1
    layer.moving_mean_biased.assign(mean)
    layer.moving_mean_step.assign(np.full(np.shape(mean), float(steps)))
