"""The communicator of a single process."""

from collections.abc import Sequence

import tensorflow as tf

from syncbn.communicators.base import Communicator


class LocalCommunicator(Communicator):
    """The communicator of a single-process program: all collectives are the identity."""

    name = "local"

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return 1

    @property
    def local_rank(self) -> int:
        return 0

    @property
    def local_size(self) -> int:
        return 1

    @property
    def jit_compatible(self) -> bool:
        return True

    def _sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return tensor

    def _broadcast(self, tensors: Sequence[tf.Tensor], root: int) -> list[tf.Tensor]:
        return list(tensors)

    def barrier(self) -> None:
        return None

    def _make_subgroup(self, size: int) -> Communicator:
        return self
