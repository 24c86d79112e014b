"""Threads of the test process as ranks: collectives take milliseconds.

They sum like real ranks, in the order of ranks, so tests of messages and their results need no job.
test_matrix_two_ranks.py tests backends on real ranks.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from threading import Barrier, BrokenBarrierError
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from syncbn.communicators import Communicator

_PATIENCE_SECONDS = 60.0

Answer = TypeVar("Answer")


class _Meeting:
    def __init__(self, size: int) -> None:
        self._values: list[Any] = [None] * size
        self.barrier = Barrier(size, timeout=_PATIENCE_SECONDS)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """The values of all ranks."""
        self._values[rank] = value
        self.barrier.wait()
        values = list(self._values)
        self.barrier.wait()
        return values


class ThreadCommunicator(Communicator):
    """One rank among threads. `sent` holds name, dtype and number of elements of each message."""

    name = "threads"

    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        super().__init__()
        self._rank, self._size, self._meeting = rank, size, meeting
        self.sent: list[tuple[str, str, int]] = []

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    local_rank, local_size = rank, size

    def barrier(self) -> None:
        self._meeting.exchange(self._rank, None)

    def _sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        tensor = tf.convert_to_tensor(tensor)

        def meet(value: np.ndarray) -> np.ndarray:
            self.sent.append((name, tensor.dtype.name, value.size))
            # Optimizers of a process are numbered; here each rank has its own optimizer.
            message = (re.sub(r"\d+", "", name), value.shape, value.dtype, value)
            heads, values = zip(
                *((m[:3], m[3]) for m in self._meeting.exchange(self._rank, message)), strict=True
            )
            assert len(set(heads)) == 1, f"the ranks send different messages: {heads}"
            return np.asarray(reduce(add, values), value.dtype)

        total = tf.numpy_function(meet, [tensor], tensor.dtype)
        total.set_shape(tensor.shape)
        return total

    def _broadcast(self, tensors: Sequence[tf.Tensor], root: int) -> list[tf.Tensor]:
        return self._meeting.exchange(self._rank, list(tensors))[root]

    def _make_subgroup(self, size: int) -> Communicator:
        raise NotImplementedError


def on_ranks(size: int, work: Callable[[ThreadCommunicator], Answer]) -> list[Answer]:
    """The results of `work` on all ranks. Raises the error of a rank, not the resulting ones."""
    meeting = _Meeting(size)

    def run(rank: int) -> Answer:
        try:
            return work(ThreadCommunicator(rank, size, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise min(errors, key=_says_little)
    return [future.result() for future in futures]


def _says_little(error: BaseException) -> bool:
    return isinstance(error, BrokenBarrierError | tf.errors.OpError)
