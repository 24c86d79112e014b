"""Sums by direct messages between ranks, as a TensorFlow operation: the C++ side of `exchange`."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from syncbn.native.loading import Kernels

_Connect = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(ctypes.c_char), ctypes.c_int)


@dataclass(frozen=True)
class Connection:
    """The connection to another rank, by descriptors, of which C++ takes ownership.

    Attributes:
        rank: The other rank.
        watch: A socket for heartbeats.
        channel: A TCP socket, or shared memory.
        shared: Whether `channel` is shared memory.
    """

    rank: int
    watch: int
    channel: int
    shared: bool


class NativeGroup:
    """A group of ranks; `group(tensor, name)` is the sum of `tensor` over them.

    Args:
        kernels: The loaded library.
        connect: Connects the ranks and returns the address of the exchange, from `open`. Called by
            the first sum, and by the first one after `leave`.
    """

    def __init__(self, kernels: Kernels, connect: Callable[[], int]) -> None:
        self._operations = kernels.operations
        self._functions = kernels.functions

        def connect_or_explain(message: Any, size: int) -> int | None:
            try:
                return connect()
            except Exception as error:  # the operation reports it: C++ cannot propagate it
                text = str(error).encode(errors="replace")[: size - 1]
                ctypes.memmove(message, text + b"\0", len(text) + 1)
                return None

        self._connect = _Connect(connect_or_explain)  # C++ keeps the pointer
        self._functions.syncbn_register_group.restype = ctypes.c_int64
        self._number = self._functions.syncbn_register_group(self._connect)
        if self._number < 0:
            raise RuntimeError("this process uses too many groups of ranks")

    def __call__(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        return self._operations.syncbn_direct_all_reduce(
            tensor=tensor, group=self._number, name=name
        )

    def leave(self) -> None:
        """Closes the connections; a sum in progress fails."""
        self._functions.syncbn_leave_group(ctypes.c_int64(self._number))


def shared_memory_size(kernels: Kernels) -> int:
    """The bytes of memory that two ranks share."""
    kernels.functions.syncbn_shared_memory_size.restype = ctypes.c_int64
    return int(kernels.functions.syncbn_shared_memory_size())


def open_exchange(
    kernels: Kernels,
    rank: int,
    size: int,
    connections: Sequence[Connection],
    limit: float,
    spins: int,
) -> int:
    """The address of the exchange of a rank.

    Args:
        kernels: The loaded library.
        rank: This rank.
        size: The number of ranks.
        connections: To the partners of this rank in recursive doubling.
        limit: Seconds without a heartbeat after which a rank is considered lost.
        spins: How often to look for a message before sleeping; 0 if ranks share cores.

    Raises:
        MemoryError: Memory could not be mapped.
    """
    count = len(connections)

    def array(values: Sequence[int]) -> Any:
        return (ctypes.c_int * count)(*values)

    function = kernels.functions.syncbn_open_exchange
    function.restype = ctypes.c_void_p
    opened = function(
        rank,
        size,
        count,
        array([connection.rank for connection in connections]),
        array([connection.watch for connection in connections]),
        array([connection.channel for connection in connections]),
        array([connection.shared for connection in connections]),
        ctypes.c_double(limit),
        spins,
    )
    if opened is None:
        raise MemoryError("the memory shared between ranks of this host cannot be mapped")
    return int(opened)
