"""Sums by direct messages between the ranks of a Horovod job over Gloo.

A Horovod all-reduce waits for the next cycle of Horovod's thread (1 ms by default) and for the
negotiation with the other ranks; a direct one takes some microseconds. Horovod transfers the
addresses of the ranks. Its own Gloo connections cannot be used: its library exports none of Gloo's
functions or contexts.
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from syncbn import native
from syncbn.communicators.addresses import Address, address_of_job, host_identity
from syncbn.communicators.cluster_environment import local_ranks
from syncbn.communicators.links import Links
from syncbn.errors import WorldError
from syncbn.native.dtypes import NATIVE, WIDENED
from syncbn.native.exchange import (
    Connection,
    NativeGroup,
    open_exchange,
    shared_memory_size,
)
from syncbn.native.loading import Kernels

# The variable of the environment: 0 for Horovod's own all-reduce, tcp to share no memory.
VARIABLE = "SYNCBN_EXCHANGE"

# Larger tensors are summed by Horovod, whose ring sends each value twice at most, regardless of the
# number of ranks; recursive doubling sends it once for each doubling.
MOST_BYTES = 2 << 20

_ENTRY_BYTES = 512
_ABSTAINS = "abstains: "
_SPINS = 5000
_MOST_SECONDS_TO_OPEN = 60.0  # every rank has sent its address before
_GLOO_TIMEOUT_SECONDS = 30.0  # Horovod's default


class DirectExchange:
    """Sums over the ranks of a process set, which the first one connects.

    Args:
        kernels: The loaded library.
        hvd: The module `horovod.tensorflow`.
        process_set: The ranks.
        name: Identifies the ranks among the process sets of the job.
    """

    def __init__(self, kernels: Kernels, hvd: Any, process_set: Any, name: str) -> None:
        self._kernels, self._hvd = kernels, hvd
        self._process_set, self._name = process_set, name
        self._group = NativeGroup(kernels, self._connect)
        _call_before_shutdown(hvd, self._group.leave)

    def use(self, process_set: Any) -> None:
        """Sets the process set of the same ranks, after Horovod was initialised again."""
        self._process_set = process_set

    def sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        """The sum of a tensor that is `small_enough`.

        Raises:
            tf.errors.UnknownError: When it runs: a rank has ended, is stopped or unreachable, or
                sent another sum. The message names it.
        """
        if tensor.dtype in WIDENED:
            return tf.cast(self.sum(tf.cast(tensor, tf.float32), name), tensor.dtype)
        return self._group(tensor, name)

    def _connect(self) -> int:
        """Connects this rank with its partners; returns the address of the native exchange."""
        result: list[int | Exception] = []

        def connect() -> None:
            try:
                result.append(self._connect_now())
            except Exception as error:
                result.append(error)

        # In a thread without the graphs, tapes and device scopes of the program.
        thread = threading.Thread(target=connect, name="connect", daemon=True)
        thread.start()
        thread.join()
        (outcome,) = result
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _connect_now(self) -> int:
        rank, size = int(self._process_set.rank()), int(self._process_set.size())
        seconds = _timeout_seconds()
        host = "" if os.environ.get(VARIABLE) == "tcp" else host_identity()
        connections: list[Connection] = []
        problem = ""
        if size > 1:
            with Links(address_of_job(), host, shared_memory_size(self._kernels)) as links:
                found = self._gather("addresses", links.address.to_json())
                _check_alike(found)
                try:
                    connections = links.open(
                        rank,
                        list(map(Address.from_json, found)),
                        min(seconds, _MOST_SECONDS_TO_OPEN),
                    )
                except (WorldError, OSError) as error:
                    problem = str(error)
                # No rank may use what another one could not open.
                problems = list(filter(None, self._gather("problems", problem)))
            if problems:
                for connection in connections:
                    os.close(connection.watch)
                    os.close(connection.channel)
                raise WorldError(problems[0])
        crowded = local_ranks() > len(os.sched_getaffinity(0))
        spins = 0 if crowded else _SPINS
        return open_exchange(self._kernels, rank, size, connections, seconds, spins)

    def _gather(self, what: str, text: str) -> list[str]:
        return gather(self._hvd, self._process_set, f"exchange.{self._name}.{what}", text)


class Abstention:
    """A rank that cannot use an exchange, in a job where the others may wait for it to connect.

    Args:
        hvd: The module `horovod.tensorflow`.
        process_set: The ranks.
        name: That of their exchange.
        reason: Why this rank cannot use it.
    """

    def __init__(self, hvd: Any, process_set: Any, name: str, reason: str) -> None:
        self._hvd, self._process_set = hvd, process_set
        self._name, self.reason = name, reason
        self._told = False
        _call_before_shutdown(hvd, self._forget)

    def before(self, tensor: tf.Tensor) -> tf.Tensor:
        """`tensor`, once the other ranks know; fails if one of them can use the exchange."""
        known = tf.numpy_function(self._tell, [], tf.bool)
        with tf.control_dependencies([known]):
            return tf.identity(tensor)

    def _tell(self) -> bool:
        if not self._told and int(self._process_set.size()) > 1:
            name = f"exchange.{self._name}.addresses"
            _check_alike(gather(self._hvd, self._process_set, name, _ABSTAINS + self.reason))
        self._told = True
        return True

    def _forget(self) -> None:
        self._told = False


def _check_alike(entries: Sequence[str]) -> None:
    """Raises WorldError unless all ranks can use an exchange, or none."""
    reasons = {r: e for r, e in enumerate(entries) if e.startswith(_ABSTAINS)}
    if reasons and len(reasons) < len(entries):
        rank, text = next(iter(reasons.items()))
        raise WorldError(
            f"rank {rank} cannot take part ({text.removeprefix(_ABSTAINS)}), but other ranks can. "
            "Build the C++ operations there (python -m syncbn.native.build), or set "
            f"{VARIABLE}=0 on all ranks"
        )


_exchanges: dict[str, DirectExchange] = {}


def exchange_over(hvd: Any, process_set: Any) -> DirectExchange | None:
    """The exchange of these ranks; None without the C++ kernels.

    One per group and process: a graph that outlives a resize of the job must use the same one as
    the graphs of the ranks that have joined.
    """
    kernels = native.kernels()
    if kernels is None:
        return None
    name = name_of(hvd, process_set)
    if name not in _exchanges:
        _exchanges[name] = DirectExchange(kernels, hvd, process_set, name)
    _exchanges[name].use(process_set)
    return _exchanges[name]


def name_of(hvd: Any, process_set: Any) -> str:
    """A name of the ranks, equal on all of them."""
    everyone = process_set is hvd.global_process_set
    return "world" if everyone else "-".join(map(str, process_set.ranks))


def gather(hvd: Any, process_set: Any, name: str, text: str) -> list[str]:
    """The texts of all ranks, shortened to 512 bytes, by an all-gather over Horovod."""
    entry = np.zeros([1, _ENTRY_BYTES], np.uint8)
    data = text.encode()[:_ENTRY_BYTES]
    entry[0, : len(data)] = np.frombuffer(data, np.uint8)
    with tf.device("CPU:0"):
        entries = hvd.allgather(
            tf.constant(entry), name=name, process_set=process_set, ignore_name_scope=True
        )
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in entries.numpy()]


def reason_against() -> str:
    """Why this process cannot use an exchange; empty if it can."""
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE}=0 is set"
    status = native.status()
    return "" if status.path == "native" else status.reason or "there are no C++ kernels"


def small_enough(tensor: tf.Tensor) -> bool | tf.Tensor:
    """Whether an exchange sums the tensor; a tensor if its size is known at run time only.

    Every rank must decide alike, even if one has traced the graph for a fixed size and another one
    for any size.
    """
    if tensor.dtype not in (*NATIVE, *WIDENED):
        return False
    most = MOST_BYTES // tensor.dtype.size
    count = tensor.shape.num_elements()
    return tf.size(tensor) <= most if count is None else count <= most


def _timeout_seconds() -> float:
    """Gloo's time limit, within which it detects a peer that is stopped or unreachable."""
    with suppress(ValueError):
        seconds = float(os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS", ""))
        if seconds > 0:
            return seconds
    return _GLOO_TIMEOUT_SECONDS


_before_shutdown: list[Callable[[], None]] = []


def _call_before_shutdown(hvd: Any, action: Callable[[], None]) -> None:
    """Calls `action` each time before this process leaves its Horovod job, or joins another."""
    _hook(hvd)
    _before_shutdown.append(action)


@cache
def _hook(hvd: Any) -> None:
    # Horovod has no callback for this; every way to leave a job, also that of elastic jobs, calls
    # this function of its library.
    library = hvd.mpi_ops._basics.MPI_LIB_CTYPES
    leave: Callable[[], Any] = library.horovod_shutdown

    def shutdown() -> Any:
        for action in _before_shutdown:
            action()
        return leave()

    library.horovod_shutdown = shutdown


def first_reason(reasons: Sequence[str]) -> str:
    """The first reason against an exchange, with its rank; empty if there is none."""
    return next((f"rank {rank}: {text}" for rank, text in enumerate(reasons) if text), "")
