"""MPI_Allreduce as a TensorFlow operation: C++ gets the function and handles from mpi4py."""

import ctypes
from typing import Any

import numpy as np
import tensorflow as tf

from syncbn import native
from syncbn.native.loading import Kernels


class NativeSum:
    """`NativeSum(mpi, comm)(tensor, name)` is the sum of `tensor` over the ranks of `comm`."""

    def __init__(self, kernels: Kernels, mpi: Any, comm: Any) -> None:
        self._operations = kernels.operations
        self._mpi = mpi
        register = kernels.functions.syncbn_register_mpi
        register.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_int]
        register.restype = ctypes.c_int64
        self._number = register(
            ctypes.cast(ctypes.CDLL(mpi.__file__).MPI_Allreduce, ctypes.c_void_p),
            int(mpi.IN_PLACE),
            mpi._handleof(comm),
            mpi._handleof(mpi.SUM),
            mpi._sizeof(mpi.Comm) == ctypes.sizeof(ctypes.c_void_p),
        )

    def __call__(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        code = np.dtype(tensor.dtype.as_numpy_dtype).char
        return self._operations.syncbn_mpi_all_reduce(
            tensor=tensor,
            communicator=self._number,
            datatype=self._mpi._handleof(self._mpi.Datatype.fromcode(code)),
            name=name,
        )


def native_sum(mpi: Any, comm: Any) -> NativeSum | None:
    """The operation for `comm`, or None without the C++ operations or with mpi4py before 4.0."""
    kernels = native.kernels()
    if kernels is None or not hasattr(mpi, "_handleof"):  # mpi4py before 4.0
        return None
    return NativeSum(kernels, mpi, comm)
