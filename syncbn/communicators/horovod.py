"""Horovod's core operations; its Keras layer fails on Keras 3 and is not used.

Horovod matches operations between ranks by name. If Horovod runs over MPI and the tensors are on
the CPU, this communicator calls MPI directly: a Horovod all-reduce waits for the next cycle (1 ms
by default) and then calls MPI, while an MPI all-reduce takes microseconds. If Horovod runs over
Gloo, small tensors on the CPU are summed by direct messages between the ranks (`exchange`).
"""

import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import tensorflow as tf

from syncbn.communicators.base import Communicator, matched_name
from syncbn.communicators.cluster_environment import (
    cluster_environment,
    local_ranks,
    prepare_open_mpi,
)
from syncbn.communicators.exchange import (
    Abstention,
    DirectExchange,
    exchange_over,
    first_reason,
    gather,
    name_of,
    reason_against,
    small_enough,
)
from syncbn.communicators.mailboxes import Mailbox, rendezvous_mailbox
from syncbn.communicators.mpi import MPICommunicator, graph_name
from syncbn.errors import MissingBackendError

_UNKNOWN_TO_HOROVOD = (tf.bfloat16, tf.uint32, tf.uint64)

_log = logging.getLogger(__name__)


def import_horovod() -> Any:
    """The module `horovod.tensorflow`.

    Raises:
        MissingBackendError: Horovod is not installed, or was built for another TensorFlow.
    """
    try:
        import horovod.tensorflow as hvd
    except Exception as error:  # load_op_library raises NotFoundError for a stale build
        raise MissingBackendError(
            "the horovod backend needs Horovod built for this TensorFlow. Build it with: "
            f"python -m launcher install-horovod (import failed: {str(error).splitlines()[0]})"
        ) from error
    return hvd


def wire_name(name: str) -> str:
    """The name by which Horovod matches ranks, without the graph's name scope, which may differ."""
    return graph_name(matched_name(name).replace("/", "."))


class HorovodCommunicator(Communicator):
    """The ranks of a Horovod process set, by default the global one.

    Args:
        process_set: A `horovod.tensorflow.ProcessSet`, or None for all ranks.
        direct: An MPI communicator over the same ranks to send tensors with, or None.
        exchange: The exchange of the same ranks to sum small tensors with, or None; in an elastic
            job, that this rank cannot use it.
    """

    name = "horovod"

    def __init__(
        self,
        process_set: Any = None,
        direct: MPICommunicator | None = None,
        exchange: DirectExchange | Abstention | None = None,
    ) -> None:
        super().__init__()
        self._hvd = import_horovod()
        self._process_set = self._hvd.global_process_set if process_set is None else process_set
        self._direct = direct
        self._exchange = exchange

    @property
    def rank(self) -> int:
        return int(self._process_set.rank())

    @property
    def size(self) -> int:
        return int(self._process_set.size())

    @property
    def local_rank(self) -> int:
        return int(self._hvd.local_rank())

    @property
    def local_size(self) -> int:
        return int(self._hvd.local_size())

    @property
    def transport(self) -> str:
        if isinstance(self._exchange, DirectExchange):
            return "direct exchange"
        return self.name if self._direct is None else self._direct.transport

    def open_mailbox(self) -> Mailbox | None:
        if self._direct is not None:
            return self._direct.open_mailbox()
        if not self._hvd.mpi_enabled():
            return rendezvous_mailbox(lambda: self.rank)
        try:
            return MPICommunicator().open_mailbox()  # tensors are on GPUs
        except MissingBackendError:
            return None

    @property
    def _alone(self) -> bool:
        # An elastic world of one rank may grow, a group cannot.
        everyone = self._process_set is self._hvd.global_process_set
        return self.size == 1 and (tf.executing_eagerly() or not everyone)

    def _sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        if self._direct is not None:
            return self._direct.all_reduce(tensor, name)
        exchange = self._exchange
        if exchange is None:
            return self._sum_by_horovod(tensor, name)

        def small_sum() -> tf.Tensor:
            if isinstance(exchange, DirectExchange):
                return exchange.sum(tensor, graph_name(name))
            return self._sum_by_horovod(exchange.before(tensor), name)

        small = small_enough(tensor)
        if isinstance(small, bool):
            return small_sum() if small else self._sum_by_horovod(tensor, name)
        total = tf.cond(small, small_sum, lambda: self._sum_by_horovod(tensor, name))
        total.set_shape(tensor.shape)
        return total

    def _sum_by_horovod(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        if tensor.dtype == tf.bfloat16:
            return tf.cast(self._sum_by_horovod(tf.cast(tensor, tf.float32), name), tf.bfloat16)
        return self._hvd.allreduce(
            tensor,
            op=self._hvd.Sum,
            name=wire_name(name),
            process_set=self._process_set,
            ignore_name_scope=True,
        )

    def _broadcast(self, tensors: Sequence[tf.Tensor], root: int) -> list[tf.Tensor]:
        if self._direct is not None:
            return self._direct.broadcast(tensors, root)
        if self._process_set is not self._hvd.global_process_set:
            root = self._process_set.ranks[root]  # Horovod expects the rank in the world.
        return [
            self._broadcast_one(tensor, root, wire_name(f"broadcast/{index}"))
            for index, tensor in enumerate(tensors)
        ]

    def _broadcast_one(self, tensor: tf.Tensor, root: int, name: str) -> tf.Tensor:
        if tensor.dtype in _UNKNOWN_TO_HOROVOD:
            received = self._broadcast_one(tf.bitcast(tensor, tf.uint8), root, name)
            return tf.bitcast(received, tensor.dtype)
        return self._hvd.broadcast(
            tensor,
            root_rank=root,
            name=name,
            process_set=self._process_set,
            ignore_name_scope=True,
        )

    def barrier(self) -> None:
        # Horovod's TensorFlow module has no barrier; a sum ends only after all ranks called it.
        self.all_reduce(tf.zeros([]), "barrier")

    def _make_subgroup(self, size: int) -> Communicator:
        # Horovod requires every rank to register every block in the same order.
        blocks = [
            self._hvd.add_process_set(list(range(first, first + size)))
            for first in range(0, self.size, size)
        ]
        direct = None
        if self._direct is not None:
            subgroup = self._direct.subgroup(size)
            direct = subgroup if isinstance(subgroup, MPICommunicator) else None
        mine = blocks[self.rank // size]
        exchange = self._exchange
        if isinstance(exchange, DirectExchange):
            exchange = exchange_over(self._hvd, mine)
        elif exchange is not None:
            exchange = Abstention(self._hvd, mine, name_of(self._hvd, mine), exchange.reason)
        return HorovodCommunicator(mine, direct, exchange)


def initialise_horovod() -> HorovodCommunicator:
    """Calls `hvd.init()` with settings for small messages and chooses the transport of statistics.

    Settings that are already in the environment are kept.
    """
    hvd = import_horovod()
    if not hvd.is_initialized():
        os.environ.setdefault("HOROVOD_DYNAMIC_PROCESS_SETS", "1")
        choose_cycle_time()
        prepare_open_mpi()
        hvd.init()
    if not hvd.mpi_enabled():
        return HorovodCommunicator(exchange=_direct_exchange(hvd))
    return HorovodCommunicator(direct=_direct_mpi(hvd))


def choose_cycle_time() -> None:
    """Sets HOROVOD_CYCLE_TIME, the interval in milliseconds at which Horovod's thread wakes up.

    If sums go through that thread and a core is free for it, 0.1 instead of the default 1.

    If sums go over MPI directly, the thread only costs: at each cycle it negotiates with the other
    ranks, and uses a core while it waits for them. Fifty layers on two ranks and two cores take
    7 ms with 50, 7 to 60 ms with 10, 140 ms and more with 1. Tensors that a program sends through
    Horovod itself then wait for up to 50 ms.
    """
    over_mpi = cluster_environment().backend == "mpi" and find_spec("mpi4py") is not None
    if over_mpi and not tf.config.get_visible_devices("GPU"):
        os.environ.setdefault("HOROVOD_CYCLE_TIME", "50")
    elif len(os.sched_getaffinity(0)) > local_ranks():
        os.environ.setdefault("HOROVOD_CYCLE_TIME", "0.1")


def _direct_exchange(hvd: Any) -> DirectExchange | Abstention | None:
    """The exchange of all ranks if each of them can use one; logs the choice and its reason."""
    reason, everyone = reason_against(), hvd.global_process_set
    # The ranks of an elastic job must not communicate before they share their state.
    elastic = os.environ.get("HOROVOD_ELASTIC") == "1"
    if hvd.size() > 1 and not elastic:
        reason = first_reason(gather(hvd, everyone, "exchange.reasons", reason))
    if not reason:
        _log.info("statistics are reduced by direct messages between ranks: Horovod runs over Gloo")
        return exchange_over(hvd, everyone)
    _log.info("statistics are reduced by Horovod over Gloo: %s", reason)
    return Abstention(hvd, everyone, name_of(hvd, everyone), reason) if elastic else None


def _direct_mpi(hvd: Any) -> MPICommunicator | None:
    """An MPI communicator for tensors on the CPU if available; logs the choice and its reason."""
    if hvd.size() == 1:
        return None
    if tf.config.get_visible_devices("GPU"):
        reason = "tensors are on GPUs, where Horovod reduces them in place"
    else:
        try:
            direct = MPICommunicator()
        except MissingBackendError as error:
            reason = str(error)
        else:
            if (direct.rank, direct.size) == (hvd.rank(), hvd.size()):
                _log.info(
                    "statistics are reduced by MPI directly: Horovod runs over MPI and tensors are "
                    "on the CPU (Horovod's cycle time: %s ms)",
                    os.environ.get("HOROVOD_CYCLE_TIME", "1"),
                )
                return direct
            reason = "MPI numbers the ranks differently"
    _log.info("statistics are reduced by Horovod: %s", reason)
    return None
