"""Gives a layer's moving statistics the values they would have settled on."""

import math
from typing import Any

import keras
import numpy as np


def settle(layer: keras.layers.BatchNormalization, mean: np.ndarray, variance: np.ndarray) -> None:
    """Sets everything a layer tracks as if it had seen these statistics for ever.

    Args:
        layer: Built, ours or Keras'.
        mean: The mean, shape (C,).
        variance: What the moving variance follows, shape (C,).
    """
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    settle_renorm(layer, mean, variance)
    settle_debiasing(layer, mean)


def settle_renorm(layer: Any, mean: np.ndarray, variance: np.ndarray) -> None:
    """The same for what batch renormalization tracks, if it is on."""
    if layer.renorm:
        stddev = np.sqrt(np.asarray(variance, np.float64) + layer.epsilon)
        layer.moving_stddev.assign(stddev)
        layer.renorm_mean.assign(mean)
        layer.renorm_stddev.assign(stddev)


def settle_debiasing(layer: Any, mean: np.ndarray) -> None:
    """The same for a zero-debiased moving mean, which otherwise would begin anew."""
    if not getattr(layer, "zero_debias_moving_mean", False):
        return
    # After so many steps the initial zero weighs less than float32 can tell.
    steps = math.ceil(math.log(1e-9) / math.log(layer.momentum)) if 0 < layer.momentum < 1 else 1
    layer.moving_mean_biased.assign(mean)
    layer.moving_mean_step.assign(np.full(np.shape(mean), float(steps)))
