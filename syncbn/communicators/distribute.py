"""tf.distribute: collective operations of a TF_CONFIG cluster, and replica contexts.

Two communicators share the name `tf`. `ClusterCommunicator` has one process per rank and works
anywhere, inside or outside `strategy.run`. `ReplicaCommunicator` stands for one replica of a
strategy (MirroredStrategy's several replicas live in one process) and works inside `strategy.run`.
"""

import os
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import tensorflow as tf

from syncbn.communicators import listening
from syncbn.communicators.base import Communicator, matched_name
from syncbn.communicators.bits import broadcast_by_sum
from syncbn.communicators.captures import captured
from syncbn.communicators.cluster_environment import cluster_from_tf_config
from syncbn.communicators.mailboxes import ClusterMailbox
from syncbn.communicators.watchdog import Count, Watchdog
from syncbn.errors import NotInitializedError, WorldError

# Far from the small numbers that tf.distribute gives its own groups.
_GROUP_KEY = 0x5BA7C4
# A rank that does not come to a collective ends the job after this long.
_watchdog = Watchdog(seconds=600.0)
# Up to here a sum waits for messages, not for bytes: every rank gathers the vectors of all and adds
# them itself, in P-1 steps, where a ring that sums takes 2(P-1).
_GATHERED_BYTES = 32768
# Keys of collectives in graphs lie above this; those counted at run time stay below.
_NAMED_KEYS = 1 << 30
_GATHERED_DTYPES = (tf.float16, tf.float32, tf.float64, tf.int32, tf.int64)


class ClusterCommunicator(Communicator):
    """The workers of a TF_CONFIG cluster, one replica each.

    Attributes:
        strategy: The `tf.distribute.MultiWorkerMirroredStrategy` that holds the cluster.
    """

    name = "tf"

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        addresses: Sequence[str],
        rank: int,
        first: int = 0,
        group_key: int = _GROUP_KEY,
    ) -> None:
        super().__init__()
        self.strategy = strategy
        self._addresses = list(addresses)
        self._rank = rank
        self._first = first
        self._group_key = group_key
        self._names: dict[int, str] = {}
        # Numbers what no name tells apart. Its handle is also the ordering token that keeps the
        # collectives in program order.
        with tf.init_scope(), tf.device("CPU:0"):
            self._instance = tf.Variable(0, dtype=tf.int32, trainable=False)
        self._count = Count()
        _watchdog.watch(self._count)

    @property
    def rank(self) -> int:
        return self._rank - self._first

    @property
    def size(self) -> int:
        return len(self._addresses)

    def _neighbours(self) -> list[int]:
        host = self._addresses[self.rank].rsplit(":", 1)[0]
        return [i for i, a in enumerate(self._addresses) if a.rsplit(":", 1)[0] == host]

    @property
    def local_rank(self) -> int:
        return self._neighbours().index(self.rank)

    @property
    def local_size(self) -> int:
        return len(self._neighbours())

    def open_mailbox(self) -> ClusterMailbox:
        return ClusterMailbox(self.rank)

    def _sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        collective = {
            "group_size": self.size,
            "group_key": self._group_key,
            "instance_key": self._key(tensor, name),
            "ordering_token": [captured(self._instance.handle)],
        }
        values = tensor.shape.num_elements()
        gathered = (
            values is not None
            and values * tensor.dtype.size <= _GATHERED_BYTES
            and tensor.dtype in _GATHERED_DTYPES
        )
        # The graph of a gradient runs only what its results depend on.
        with tf.control_dependencies([tensor]):
            begun = self._count.begin()
        with tf.control_dependencies([begun]):
            if gathered:
                result = tf.raw_ops.CollectiveGatherV2(input=tensor[tf.newaxis], **collective)
            else:
                result = tf.raw_ops.CollectiveReduceV2(
                    input=tensor, merge_op="Add", final_op="Id", **collective
                )
        with tf.control_dependencies([result]):
            ended = self._count.end()
        with tf.control_dependencies([ended]):
            if gathered:  # added up in the same order on every rank
                return tf.add_n(tf.unstack(result, self.size))
            return tf.identity(result)

    def _key(self, tensor: tf.Tensor, name: str) -> int | tf.Tensor:
        """The number by which the ranks know the operation.

        In a graph it follows from the name, so that every step uses the same: for a number never
        seen before the ranks ask the first of them, which costs as much as the sum. It does not
        come from counting while tracing, because ranks may trace a different number of times.
        """
        if tf.executing_eagerly() or not tensor.shape.is_fully_defined():
            token = captured(self._instance.handle)
            counted = tf.raw_ops.AssignAddVariableOp(resource=token, value=1)
            # The graph of a gradient need not keep resources in program order by itself.
            with tf.control_dependencies([counted]):
                return tf.raw_ops.ReadVariableOp(resource=token, dtype=tf.int32)
        text = f"{matched_name(name)} {tensor.dtype.name} {tensor.shape}"
        key = zlib.crc32(text.encode())
        # Two names that happen to have one number must not be taken for one operation.
        while self._names.setdefault(key % _NAMED_KEYS, text) != text:
            key += 1
        return _NAMED_KEYS + key % _NAMED_KEYS

    def _broadcast(self, tensors: Sequence[tf.Tensor], root: int) -> list[tf.Tensor]:
        return broadcast_by_sum(
            tensors, self.rank == root, lambda bits: self.all_reduce_many(bits, "broadcast")
        )

    def barrier(self) -> None:
        self.all_reduce(tf.zeros([], tf.float32), "barrier")

    def _make_subgroup(self, size: int) -> Communicator:
        block = self.rank // size
        start = block * size
        return ClusterCommunicator(
            self.strategy,
            self._addresses[start : start + size],
            self._rank,
            first=self._first + start,
            # Blocks of one size share a key space; sizes are told apart by the high part.
            group_key=self._group_key + (size << 8) + block + 1,
        )


class ReplicaCommunicator(Communicator):
    """The replicas of a tf.distribute strategy, seen from inside `strategy.run`.

    Args:
        context: The replica context of the calling replica.
        group: Replicas per block, for subgroups; None for all.
    """

    name = "tf"

    def __init__(self, context: tf.distribute.ReplicaContext, group: int | None = None) -> None:
        super().__init__()
        self._context = context
        self._group = group

    @property
    def spans_processes(self) -> bool:
        """Whether the strategy's replicas may live in several processes."""
        return not isinstance(self._context.strategy, tf.distribute.MirroredStrategy)

    @property
    def _replica(self) -> int | tf.Tensor:
        return self._context.replica_id_in_sync_group

    @property
    def rank(self) -> int:
        replica = self._replica
        number = replica if isinstance(replica, int) else int(tf.get_static_value(replica))
        return number if self._group is None else number % self._group

    @property
    def size(self) -> int:
        return self._group or int(self._context.num_replicas_in_sync)

    @property
    def local_rank(self) -> int:
        return self.rank

    @property
    def local_size(self) -> int:
        return self.size

    def _sum(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        add_up = partial(self._context.all_reduce, tf.distribute.ReduceOp.SUM)
        if self._group is None:
            return add_up(tensor)
        # tf.distribute has no subgroups: each block fills its own row of one all-reduce.
        blocks = int(self._context.num_replicas_in_sync) // self._group
        block = self._replica // self._group
        ones = tf.one_hot(block, blocks, dtype=tensor.dtype)
        rows = tf.tensordot(ones, tensor, axes=0)
        return tf.gather(add_up(rows), block)

    def _broadcast(self, tensors: Sequence[tf.Tensor], root: int) -> list[tf.Tensor]:
        return broadcast_by_sum(
            tensors,
            tf.equal(self._replica, root),
            lambda bits: self.all_reduce_many(bits, "broadcast"),
        )

    def barrier(self) -> None:
        self.all_reduce(tf.zeros([], tf.float32), "barrier")

    def _make_subgroup(self, size: int) -> Communicator:
        return ReplicaCommunicator(self._context, size)


def current_replica() -> ReplicaCommunicator | None:
    """The communicator of the enclosing `strategy.run`, or None outside one.

    Raises:
        NotInitializedError: Called under `strategy.scope()` of several replicas, outside
            `strategy.run`, where there is no replica to speak for.
    """
    if not tf.distribute.has_strategy():
        return None
    context = tf.distribute.get_replica_context()
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return None
    if context is None:
        raise NotInitializedError(
            "synchronized statistics under a strategy of "
            f"{strategy.num_replicas_in_sync} replicas are computed inside strategy.run. "
            "Received: a call in its cross-replica context; write strategy.run(step, args=...)"
        )
    return ReplicaCommunicator(context)


def initialise_cluster() -> ClusterCommunicator | None:
    """Brings up the cluster TF_CONFIG describes; None when it describes fewer than two workers."""
    addresses, rank = cluster_from_tf_config(os.environ.get("TF_CONFIG") or "{}")
    if len(addresses) < 2:
        return None
    if not 0 <= rank < len(addresses):
        raise WorldError(
            f"TF_CONFIG's task index must lie in 0..{len(addresses) - 1}. Received: {rank}"
        )
    here = listening.address_of(addresses[rank])
    try:
        with listening.only_on(here) if here else nullcontext():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise WorldError(
            "the tf backend must be initialised before TensorFlow runs its first operation: call "
            f"syncbn.init('tf') at the top of the program (TensorFlow said: {error})"
        ) from error
    return ClusterCommunicator(strategy, addresses, rank)
