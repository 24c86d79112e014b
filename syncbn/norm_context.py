"""The arguments shared by all functions of one normalization, as one value."""

import math
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from syncbn import telemetry
from syncbn.communicators.base import Communicator, unique_name
from syncbn.moments import Layout


@keras.saving.register_keras_serializable(package="syncbn")
@dataclass(frozen=True)
class Rectifier:
    """A piecewise linear activation: z·slope below zero, z up to `cap`, `cap` above.

    Attributes:
        slope: 0 for ReLU and ReLU6, otherwise that of a leaky ReLU.
        cap: 6 for ReLU6, otherwise infinite.
    """

    slope: float = 0.0
    cap: float = math.inf

    def __call__(self, values: tf.Tensor) -> tf.Tensor:
        positive = tf.nn.relu(values) if self.cap == math.inf else tf.nn.relu6(values)
        return positive if self.slope == 0.0 else tf.nn.leaky_relu(values, self.slope)

    def gradient(self, values: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        """`upstream` times the derivative at `values`."""
        if self.slope != 0.0:
            return tf.raw_ops.LeakyReluGrad(gradients=upstream, features=values, alpha=self.slope)
        of = tf.raw_ops.ReluGrad if self.cap == math.inf else tf.raw_ops.Relu6Grad
        return of(gradients=upstream, features=values)

    def get_config(self) -> dict[str, float | None]:
        return {"slope": self.slope, "cap": None if self.cap == math.inf else self.cap}

    @classmethod
    def from_config(cls, config: dict[str, float | None]) -> "Rectifier":
        cap = config["cap"]
        return cls(slope=config["slope"] or 0.0, cap=math.inf if cap is None else cap)


_RECTIFIERS = (
    (keras.activations.relu, Rectifier()),
    (keras.activations.relu6, Rectifier(cap=6.0)),
    (keras.activations.leaky_relu, Rectifier(slope=0.2)),
)


def rectifier_of(activation: Any) -> Rectifier | None:
    """The rectifier equal to `activation`; None if `activation` is no ReLU variant."""
    if isinstance(activation, Rectifier):
        return activation
    return next((ours for theirs, ours in _RECTIFIERS if theirs is activation), None)


@dataclass(frozen=True)
class NormContext:
    """The parameters of one call of a layer.

    Attributes:
        layout: The position of the channel axis, of size C.
        epsilon: Added to the variance.
        communicator: The ranks that share statistics.
        name: Prefix of the names of the collectives, the same on every rank.
        weights: As in `moments.local`: in the compute dtype and broadcastable to the inputs, zero
            at masked positions. None: all positions have weight 1.
        residual: Added to the normalized values, before the rectifier: of the shape and dtype of
            the inputs, or None.
        rectifier: Applied to the normalized values, or None.
    """

    layout: Layout
    epsilon: float
    communicator: Communicator
    name: str
    weights: tf.Tensor | None = None
    residual: tf.Tensor | None = None
    rectifier: Rectifier | None = None

    def all_reduce(self, wire: tf.Tensor, direction: str) -> tf.Tensor:
        """The sum of `wire` over all ranks, measured by `telemetry` as sync_batch_norm.

        Args:
            wire: float64 vector, of the same length on every rank.
            direction: `forward` or `backward`.
        """
        name = unique_name(f"{self.name}/{direction}")
        return telemetry.all_reduce(self.communicator, wire, name, "sync_batch_norm")
