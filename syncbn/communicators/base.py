"""The interface of a communicator, implemented by `local`, `horovod`, `mpi` and `distribute`.

Every method is collective: each rank of the communicator must call it, in the same order, with the
same shapes and dtypes.
"""

import re
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence

import tensorflow as tf

from syncbn.communicators.mailboxes import Mailbox
from syncbn.errors import WorldError

# Inside a user's `tf.function` there is nothing to convert, and AutoGraph warns about compiled
# extension modules of backends.
_without_autograph = tf.autograph.experimental.do_not_convert


class Communicator(ABC):
    """A group of processes, one replica each, with collective operations on tensors.

    Attributes:
        name: The backend: `"local"`, `"horovod"`, `"mpi"` or `"tf"`.
    """

    name: str

    @property
    @abstractmethod
    def rank(self) -> int:
        """Index of this process in the group, 0 ≤ rank < size."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of processes in the group, read at run time (elastic jobs resize)."""

    @property
    @abstractmethod
    def local_rank(self) -> int:
        """Index of this process among those of the job on this host."""

    @property
    @abstractmethod
    def local_size(self) -> int:
        """Number of processes of the job on this host."""

    @property
    def transport(self) -> str:
        """The backend that sends the messages, possibly another than `name`."""
        return self.name

    @property
    def jit_compatible(self) -> bool:
        """Whether XLA can compile graphs that contain this communicator's collectives."""
        return False

    def open_mailbox(self) -> Mailbox | None:
        """A mailbox for non-blocking messages between ranks; None if the backend has none."""
        return None

    @property
    def _alone(self) -> bool:
        """Whether there is no other rank, now and during the lifetime of a graph traced here."""
        return self.size == 1

    @_without_autograph
    def all_reduce(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """The sum of `tensor` over all ranks.

        Args:
            tensor: Any numeric shape and dtype, the same on every rank.
            name: Identifies the operation: the same on every rank, unique among pending operations.

        Returns:
            A tensor of the same shape and dtype, bitwise equal on every rank.
        """
        return tensor if self._alone else self._sum(tensor, name)

    @_without_autograph
    def all_reduce_many(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """`all_reduce` of several tensors, in one message per dtype."""
        if self._alone:
            return list(tensors)
        return pack_by_dtype(tensors, lambda flat, dtype: self._sum(flat, f"{name}/{dtype}"))

    @_without_autograph
    def broadcast(self, tensors: Sequence[tf.Tensor], root: int = 0) -> list[tf.Tensor]:
        """The tensors of rank `root`, bit for bit, on every rank."""
        return list(tensors) if self._alone else self._broadcast(tensors, root)

    @abstractmethod
    def barrier(self) -> None:
        """Blocks until every rank has called it."""

    @abstractmethod
    def _sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """`all_reduce` for more than one rank."""

    @abstractmethod
    def _broadcast(self, tensors: Sequence[tf.Tensor], root: int) -> list[tf.Tensor]:
        """`broadcast` for more than one rank."""

    @abstractmethod
    def _make_subgroup(self, size: int) -> "Communicator":
        """A communicator over the block of `size` consecutive ranks that contains this rank."""

    def subgroup(self, size: int) -> "Communicator":
        """The communicator of this rank's block of `size` consecutive ranks.

        Every rank must call it with the same sizes in the same order. Subgroups are cached.

        Args:
            size: Ranks per block; must divide the world size.

        Raises:
            WorldError: `size` does not divide the number of ranks.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1 or self.size % size:
            divisors = [k for k in range(1, self.size + 1) if self.size % k == 0]
            raise WorldError(
                f"group_size must divide the {self.size} ranks of the job (one of {divisors}). "
                f"Received: group_size={size!r}"
            )
        if size == self.size:
            return self
        # Keyed by the world size too: an elastic job may resize between two calls.
        key = (self.size, size)
        if key not in self._subgroups:
            self._subgroups[key] = self._make_subgroup(size)
        return self._subgroups[key]

    def __init__(self) -> None:
        self._subgroups: dict[tuple[int, int], Communicator] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank={self.rank}, size={self.size})"


def pack_by_dtype(
    tensors: Sequence[tf.Tensor], reduce: Callable[[tf.Tensor, str], tf.Tensor]
) -> list[tf.Tensor]:
    """Concatenates tensors of one dtype, applies `reduce(flat, dtype_name)`, and splits again."""
    results: dict[int, tf.Tensor] = {}
    by_dtype: dict[tf.DType, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_dtype.setdefault(tensor.dtype, []).append(index)
    for dtype, indices in by_dtype.items():
        flat = tf.concat([tf.reshape(tensors[i], [-1]) for i in indices], axis=0)
        pieces = tf.split(reduce(flat, dtype.name), [tf.size(tensors[i]) for i in indices])
        for index, piece in zip(indices, pieces, strict=True):
            results[index] = tf.reshape(piece, tf.shape(tensors[index]))
            results[index].set_shape(tensors[index].shape)
    return [results[index] for index in range(len(tensors))]


def matched_name(name: str) -> str:
    """The name by which ranks match a collective, from the names of a layer and its operation.

    Numbers that Keras appends to names are removed: a rank that has built one more model, to
    inspect it or to save it, numbers its layers differently, and the ranks would hang. The result
    is made unique again.
    """
    return unique_name(re.sub(r"_\d+(?=/|$)", "", name))


_calls: "weakref.WeakKeyDictionary[tf.Graph, Counter[str]]" = weakref.WeakKeyDictionary()


def unique_name(stem: str) -> str:
    """`stem` with a number that makes it unique within the graph being traced.

    Counted per graph, because ranks may trace a different number of times: the k-th use in a trace
    has the same name on every rank. Eager operations run one after the other and need no number.
    """
    if tf.executing_eagerly():
        return stem
    counter = _calls.setdefault(tf.compat.v1.get_default_graph(), Counter())
    counter[stem] += 1
    return f"{stem}/{counter[stem]}"
