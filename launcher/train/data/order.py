"""Which samples each rank reads at each step.

All ranks draw the same permutation of the training part from the seed and the epoch, split it into
global batches, and split each global batch over the ranks. No sample repeats within an epoch, and a
run that resumes with another world size continues exactly where the previous one stopped.
"""

from collections.abc import Iterator

import numpy as np

from syncbn.communicators import Communicator


class Sharding:
    """How the ranks share the samples; rank and world size are read at run time.

    Args:
        batch_size: Samples per replica and step.
        communicator: The ranks.
        replicas: Replicas of each rank.
    """

    def __init__(self, batch_size: int, communicator: Communicator, replicas: int = 1) -> None:
        self._batch_size, self._communicator, self._replicas = batch_size, communicator, replicas

    @property
    def world_size(self) -> int:
        """Replicas over all processes."""
        return self._communicator.size * self._replicas

    def shares(self, order: np.ndarray, consumed: int = 0) -> Iterator[np.ndarray]:
        """See `rank_shares`."""
        rank, size = self._communicator.rank, self._communicator.size
        return rank_shares(order, consumed, self._batch_size, rank, size, self._replicas)

    def steps(self, count: int) -> int:
        """Steps in an epoch of `count` samples."""
        return steps_left(count, 0, self._batch_size, self.world_size)

    def fewest_rows(self, count: int, consumed: int) -> int:
        """The smallest number of rows of any replica in the next step."""
        size = self.world_size
        return next_global_batch(count, consumed, self._batch_size, size) // size


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers 0 to count - 1 in the order of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def rank_shares(
    order: np.ndarray, consumed: int, batch_size: int, rank: int, size: int, replicas: int = 1
) -> Iterator[np.ndarray]:
    """This rank's share of each remaining global batch of an epoch.

    Args:
        order: From `epoch_order`.
        consumed: Samples that all ranks together have already used.
        batch_size: Samples per replica and step.
        rank: The rank.
        size: Number of ranks.
        replicas: Replicas per rank; their shares are concatenated.

    Yields:
        Sample numbers of one step: `batch_size` per replica, and equally many steps on every rank.
        The last global batch is split as evenly as possible: shares differ by one at most.
    """
    while consumed < len(order):
        world = size * replicas
        rows = next_global_batch(len(order), consumed, batch_size, world)
        shares = np.array_split(order[consumed : consumed + rows], world)
        yield np.concatenate(shares[rank * replicas : (rank + 1) * replicas])
        consumed += rows


def next_global_batch(count: int, consumed: int, batch_size: int, size: int) -> int:
    """Samples that all ranks together use in the next step.

    A remainder smaller than the number of ranks is merged into the preceding step, so that no rank
    has an empty batch (some TensorFlow convolutions fail on zero rows).
    """
    remaining, usual = count - consumed, batch_size * size
    return remaining if remaining < usual + size else usual


def steps_left(count: int, consumed: int, batch_size: int, size: int) -> int:
    """The number of steps that `rank_shares` yields."""
    remaining, usual = max(0, count - consumed), batch_size * size
    whole, rest = divmod(remaining, usual)
    return whole + (rest >= size or (rest > 0 and whole == 0))
