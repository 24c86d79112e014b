"""Which samples each rank sees, and when.

One permutation of the whole training part, drawn from the seed and the epoch, is the same on all
ranks. Step by step it is cut into global batches, and each of those into one piece per rank. So no
sample is seen twice in an epoch, and a run that goes on with another number of ranks starts exactly
where the last one stopped.
"""

from collections.abc import Iterator

import numpy as np


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers 0..count-1 in the order of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def rank_shares(
    order: np.ndarray, consumed: int, batch_size: int, rank: int, size: int, replicas: int = 1
) -> Iterator[np.ndarray]:
    """This rank's share of each global batch that is left of an epoch.

    Args:
        order: From `epoch_order`.
        consumed: Samples that all ranks together have already used.
        batch_size: Samples per replica and step.
        rank: Our rank.
        size: Number of ranks.
        replicas: Replicas of each rank, whose shares come joined.

    Yields:
        `batch_size` numbers a step, as many steps on every rank. What is left at the end is divided
        as evenly as it goes: shares then differ by one at most.
    """
    while consumed < len(order):
        world = size * replicas
        rows = next_global_batch(len(order), consumed, batch_size, world)
        shares = np.array_split(order[consumed : consumed + rows], world)
        yield np.concatenate(shares[rank * replicas : (rank + 1) * replicas])
        consumed += rows


def next_global_batch(count: int, consumed: int, batch_size: int, size: int) -> int:
    """Samples that all ranks together take in the next step.

    A rest of fewer samples than ranks joins the step before it, so that no rank goes without (some
    convolutions of TensorFlow fail on no rows).
    """
    left, usual = count - consumed, batch_size * size
    return left if left < usual + size else usual


def steps_left(count: int, consumed: int, batch_size: int, size: int) -> int:
    """How many steps `rank_shares` will yield."""
    left, usual = max(0, count - consumed), batch_size * size
    whole, rest = divmod(left, usual)
    return whole + (rest >= size or (rest > 0 and whole == 0))
