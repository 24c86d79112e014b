"""The drift of the moving statistics of each normalization layer between two readings."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

# Maps a layer to the change of its moving mean, in standard deviations, and of the logarithm of its
# moving variance; both are root mean squares over the channels.
Drift = Mapping[str, Sequence[float]]

_EPSILON = 1e-12


class MovingStatisticsDrift:
    """Computes the drift of the moving statistics of `model` since the last call."""

    def __init__(self, model: keras.Model) -> None:
        self._layers = [
            layer
            for layer in model._flatten_layers(include_self=False)
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        self._before = self._values()

    def __call__(self) -> Drift:
        before, self._before = self._before, self._values()
        return {
            layer.path: _drift(then, now)
            for layer, then, now in zip(self._layers, before, self._before, strict=True)
        }

    def _values(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (
                np.asarray(layer.moving_mean, np.float64),
                np.asarray(layer.moving_variance, np.float64),
            )
            for layer in self._layers
        ]


def _drift(
    before: tuple[np.ndarray, np.ndarray], now: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float]:
    means = (now[0] - before[0]) / np.sqrt(now[1] + _EPSILON)
    variances = np.log((now[1] + _EPSILON) / (before[1] + _EPSILON))
    return _root_mean_square(means), _root_mean_square(variances)


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def weights_to_compare(model: keras.Model, norm: str) -> list[Any]:
    """The variables that must be bitwise equal on all ranks."""
    if norm == "local":  # moving statistics differ between ranks
        return list(model.trainable_variables)
    return [*model.trainable_variables, *model.non_trainable_variables]
