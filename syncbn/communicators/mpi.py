"""MPI through mpi4py: the fastest backend for small statistics on the CPU.

A sum is a C++ operation that calls MPI, or a `tf.numpy_function` where the C++ operations are
missing. Both are stateful, so TensorFlow runs them in program order, which is the same on every
rank, and messages need no names.
"""

import sys
import traceback
from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf

from syncbn.communicators.base import Communicator
from syncbn.communicators.cluster_environment import prepare_open_mpi
from syncbn.communicators.mailboxes import MpiMailbox
from syncbn.errors import MissingBackendError, SyncbnError
from syncbn.native.dtypes import NATIVE, WIDENED
from syncbn.native.mpi import NativeSum, native_sum

_UNEQUAL = (
    "Every rank must send the same number of values, of the same dtype, in the same order: "
    "look for layers or metrics that exist on some ranks only, and for an empty batch."
)


def import_mpi() -> Any:
    """The module `mpi4py.MPI`, which initialises MPI on first import.

    Raises:
        MissingBackendError: mpi4py or the MPI library is not installed.
    """
    prepare_open_mpi()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise MissingBackendError(
            "the mpi backend needs mpi4py and an MPI library. "
            f"Install them with: pip install 'syncbn[mpi]' (import failed: {error})"
        ) from error
    return MPI


class MPICommunicator(Communicator):
    """The ranks of an MPI communicator, by default `MPI.COMM_WORLD`."""

    name = "mpi"

    def __init__(self, comm: Any = None) -> None:
        super().__init__()
        mpi = import_mpi()
        self._mpi = mpi
        self._comm = mpi.COMM_WORLD if comm is None else comm
        # Cached: Horovod finalizes MPI in every process as soon as one of them exits, while another
        # rank may still have a model to save.
        self._rank, self._size = int(self._comm.Get_rank()), int(self._comm.Get_size())
        host = mpi.COMM_WORLD.Split_type(mpi.COMM_TYPE_SHARED)
        self._local_rank, self._local_size = host.Get_rank(), host.Get_size()
        host.Free()

    @cached_property
    def _native(self) -> NativeSum | None:
        return native_sum(self._mpi, self._comm)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    @property
    def local_rank(self) -> int:
        return self._local_rank

    @property
    def local_size(self) -> int:
        return self._local_size

    def open_mailbox(self) -> MpiMailbox:
        return MpiMailbox(self._mpi, self._comm.Dup())

    def _sum_arrays(self, array: np.ndarray, name: str) -> np.ndarray:
        source = np.asarray(array, order="C")  # ascontiguousarray would give a scalar an axis
        total = np.empty_like(source)
        try:
            self._comm.Allreduce(source, total)
        except self._mpi.Exception as error:
            raise SyncbnError(
                f"MPI_Allreduce of {name} failed on rank {self.rank}: {error}. {_UNEQUAL} "
                f"Received: {source.size} values of {source.dtype} on this rank"
            ) from error
        return total

    def _sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        if tensor.dtype in WIDENED:
            return tf.cast(self._sum(tf.cast(tensor, tf.float32), name), tensor.dtype)
        if tensor.dtype not in NATIVE:
            raise SyncbnError(
                f"all_reduce needs a numeric tensor. Received: dtype={tensor.dtype.name} ({name})"
            )
        if self._native is not None:
            return self._native(tensor, graph_name(name))
        total = tf.numpy_function(
            lambda array: self._sum_arrays(array, name),
            [tensor],
            tensor.dtype,
            name=graph_name(name),
        )
        total.set_shape(tensor.shape)
        return total

    def _broadcast(self, tensors: Sequence[tf.Tensor], root: int) -> list[tf.Tensor]:
        def from_root(*arrays: np.ndarray) -> list[np.ndarray]:
            copies = [np.array(array, order="C") for array in arrays]
            for copy in copies:
                # As bytes: MPI has no bfloat16, and NaN payloads must not change.
                self._comm.Bcast(copy.reshape(-1).view(np.uint8), root=root)
            return copies

        received = tf.numpy_function(from_root, list(tensors), [t.dtype for t in tensors])
        # numpy_function returns a single output without a list.
        received = received if isinstance(received, (list, tuple)) else [received]
        for tensor, original in zip(received, tensors, strict=True):
            tensor.set_shape(original.shape)
        return list(received)

    def barrier(self) -> None:
        self._comm.Barrier()

    def _make_subgroup(self, size: int) -> Communicator:
        return MPICommunicator(self._comm.Split(color=self.rank // size, key=self.rank))


def graph_name(name: str) -> str:
    """`name` with characters replaced that TensorFlow does not allow in operation names."""
    return "".join(c if c.isalnum() or c in "_./" else "_" for c in name).lstrip("_./") or "sum"


def abort_job_on_uncaught_exception() -> None:
    """Makes an uncaught exception abort the whole MPI job.

    Otherwise the failed rank waits in MPI_Finalize for peers that wait for it in an all-reduce. The
    traceback is printed first.
    """
    mpi = import_mpi()
    previous = sys.excepthook

    def abort(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        try:
            previous(kind, error, where)
        except Exception:  # abort even if another hook fails
            traceback.print_exception(kind, error, where)
        sys.stdout.flush()
        sys.stderr.flush()
        mpi.COMM_WORLD.Abort(1)

    if mpi.COMM_WORLD.Get_size() > 1:
        sys.excepthook = abort
