"""What all functions of one normalization have in common, as one value."""

from dataclasses import dataclass

import tensorflow as tf

from syncbn import telemetry
from syncbn.communicators.base import Communicator, unique_name
from syncbn.moments import Layout


@dataclass(frozen=True)
class NormContext:
    """How one call of a layer normalizes, and with whom.

    Attributes:
        layout: Which axis of the inputs holds the C channels.
        epsilon: Added to the variance.
        communicator: The ranks that share their statistics.
        name: Stem of the names of the collectives, the same on every rank.
        weights: As in `moments.local`: same dtype as the inputs and broadcastable to them, zero at
            positions that do not count. None: all count once.
    """

    layout: Layout
    epsilon: float
    communicator: Communicator
    name: str
    weights: tf.Tensor | None = None

    def all_reduce(self, wire: tf.Tensor, direction: str) -> tf.Tensor:
        """The sum of `wire` over all ranks, counted as traffic of this layer.

        Args:
            wire: float64 vector, of the same length on every rank.
            direction: `forward` or `backward`.
        """
        name = unique_name(f"{self.name}/{direction}")
        return telemetry.all_reduce(self.communicator, wire, name, "sync_batch_norm")
