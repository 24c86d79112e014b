"""A rank that joins the all-reduces of layers and may contribute zeros to them.

For a step in which a rank has no rows. Not all TensorFlow operations support an empty batch: oneDNN
convolutions return tensors of wrong shapes, and the gradient of max pooling aborts the process
(TensorFlow 2.21). Such a rank computes on placeholder rows that do not count instead.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import tensorflow as tf

from syncbn.communicators.base import Communicator

_counts: ContextVar[tf.Tensor | None] = ContextVar("counts", default=None)


class ConditionalCommunicator(Communicator):
    """Wraps a communicator; this rank contributes zeros to its sums unless `counts`.

    Args:
        communicator: The communicator to wrap.
        counts: A bool scalar that is known only at run time: TensorFlow would merge all-reduces
            of constant zeros into one.
    """

    def __init__(self, communicator: Communicator, counts: tf.Tensor) -> None:
        super().__init__()
        self._communicator, self._counts = communicator, counts
        self.name = communicator.name

    @property
    def rank(self) -> int:
        return self._communicator.rank

    @property
    def size(self) -> int:
        return self._communicator.size

    @property
    def local_rank(self) -> int:
        return self._communicator.local_rank

    @property
    def local_size(self) -> int:
        return self._communicator.local_size

    @property
    def _alone(self) -> bool:
        return self._communicator._alone

    @property
    def transport(self) -> str:
        return self._communicator.transport

    def barrier(self) -> None:
        self._communicator.barrier()

    def _sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        mine = tf.where(self._counts, tensor, tf.zeros_like(tensor))
        return self._communicator.all_reduce(mine, name)

    def _broadcast(self, tensors: Sequence[tf.Tensor], root: int) -> list[tf.Tensor]:
        return self._communicator.broadcast(tensors, root)

    def _make_subgroup(self, size: int) -> Communicator:
        return ConditionalCommunicator(self._communicator.subgroup(size), self._counts)


@contextmanager
def contribute_only_if(counts: tf.Tensor) -> Iterator[None]:
    """Context in which synchronized statistics exclude this rank's rows unless `counts`.

    Exclude the gradients of that step as well: `apply_gradients(..., rows=0)`.
    """
    token = _counts.set(counts)
    try:
        yield
    finally:
        _counts.reset(token)


def contributing(communicator: Communicator) -> Communicator:
    """`communicator`, wrapped if `contribute_only_if` is active."""
    counts = _counts.get()
    return communicator if counts is None else ConditionalCommunicator(communicator, counts)
