"""A rank that takes part in the sums of layers and may add nothing to them.

For a step in which a rank has no rows. Not all of TensorFlow works on a batch without rows: its
oneDNN convolutions then return tensors of wrong shapes, and the gradient of its max pooling aborts
the process (TensorFlow 2.21). Such a rank computes on rows that count for nothing instead.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import tensorflow as tf

from syncbn.communicators.base import Communicator

_counts: ContextVar[tf.Tensor | None] = ContextVar("counts", default=None)


class ConditionalCommunicator(Communicator):
    """The ranks of another communicator, to whose sums this one adds zeros unless it counts.

    Args:
        ranks: The other communicator.
        counts: A bool scalar that is known at run time only. Sums of constant zeros TensorFlow
            would take for one and the same.
    """

    def __init__(self, ranks: Communicator, counts: tf.Tensor) -> None:
        super().__init__()
        self._ranks, self._counts = ranks, counts
        self.name = ranks.name

    @property
    def rank(self) -> int:
        return self._ranks.rank

    @property
    def size(self) -> int:
        return self._ranks.size

    @property
    def local_rank(self) -> int:
        return self._ranks.local_rank

    @property
    def local_size(self) -> int:
        return self._ranks.local_size

    @property
    def _alone(self) -> bool:
        return self._ranks._alone

    @property
    def transport(self) -> str:
        return self._ranks.transport

    def barrier(self) -> None:
        self._ranks.barrier()

    def _sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        mine = tf.where(self._counts, tensor, tf.zeros_like(tensor))
        return self._ranks.all_reduce(mine, name)

    def _broadcast(self, tensors: Sequence[tf.Tensor], root: int) -> list[tf.Tensor]:
        return self._ranks.broadcast(tensors, root)

    def _make_subgroup(self, size: int) -> Communicator:
        return ConditionalCommunicator(self._ranks.subgroup(size), self._counts)


@contextmanager
def contribute_only_if(counts: tf.Tensor) -> Iterator[None]:
    """Within it, the statistics of synchronized layers leave out this rank's rows unless `counts`.

    The gradients of that step have to be left out too: `apply_gradients(..., rows=0)`.
    """
    token = _counts.set(counts)
    try:
        yield
    finally:
        _counts.reset(token)


def contributing(ranks: Communicator) -> Communicator:
    """`ranks` as this rank takes part in their sums at this point of the program."""
    counts = _counts.get()
    return ranks if counts is None else ConditionalCommunicator(ranks, counts)
