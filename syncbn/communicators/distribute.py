"""tf.distribute: collective operations of a TF_CONFIG cluster, and replica contexts.

Two communicators share the name `tf`. `ClusterCommunicator` has one process per rank and works
inside and outside `strategy.run`. `ReplicaCommunicator` represents one replica of a strategy (a
MirroredStrategy has several in one process) and works inside `strategy.run`.
"""

import os
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import tensorflow as tf

from syncbn.communicators import listening, slurm
from syncbn.communicators.base import Communicator, matched_name
from syncbn.communicators.bits import broadcast_by_sum
from syncbn.communicators.captures import captured
from syncbn.communicators.cluster_environment import cluster_from_tf_config
from syncbn.communicators.mailboxes import ClusterMailbox
from syncbn.communicators.watchdog import Count, Watchdog
from syncbn.errors import NotInitializedError, WorldError

# tf.distribute numbers its own groups from small integers; this key cannot collide with them.
_GROUP_KEY = 0x5BA7C4
# Time limit for a collective that another rank has not called.
_watchdog = Watchdog(seconds=600.0)
# Up to this size latency dominates: every rank gathers all vectors and adds them locally, in P-1
# steps, where a ring all-reduce takes 2(P-1).
_GATHERED_BYTES = 32768
# Instance keys derived from names start here; those counted at run time stay below.
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
        # Instance key of collectives that have no name-based key. The handle is also the ordering
        # token that keeps collectives in program order.
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

    def _ranks_on_host(self) -> list[int]:
        host = self._addresses[self.rank].rsplit(":", 1)[0]
        return [i for i, a in enumerate(self._addresses) if a.rsplit(":", 1)[0] == host]

    @property
    def local_rank(self) -> int:
        return self._ranks_on_host().index(self.rank)

    @property
    def local_size(self) -> int:
        return len(self._ranks_on_host())

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
        # A gradient graph prunes operations that its results do not depend on.
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
            if gathered:  # summed in the same order on every rank
                return tf.add_n(tf.unstack(result, self.size))
            return tf.identity(result)

    def _key(self, tensor: tf.Tensor, name: str) -> int | tf.Tensor:
        """The instance key by which the ranks match the operation.

        In a graph it is derived from the name, so that every step uses the same key: for a new key
        all ranks query the first one, which costs as much as the sum. It is not counted while
        tracing, because ranks may trace a different number of times.
        """
        if tf.executing_eagerly() or not tensor.shape.is_fully_defined():
            token = captured(self._instance.handle)
            counted = tf.raw_ops.AssignAddVariableOp(resource=token, value=1)
            # A gradient graph does not add automatic control dependencies for resources.
            with tf.control_dependencies([counted]):
                return tf.raw_ops.ReadVariableOp(resource=token, dtype=tf.int32)
        text = f"{matched_name(name)} {tensor.dtype.name} {tensor.shape}"
        key = zlib.crc32(text.encode())
        # Resolve hash collisions between names.
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
            # The block index is in the low bits, the block size in the high bits.
            group_key=self._group_key + (size << 8) + block + 1,
        )


class ReplicaCommunicator(Communicator):
    """The replicas of a tf.distribute strategy, inside `strategy.run`.

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
        """Whether the strategy may have replicas in several processes."""
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
        # tf.distribute has no subgroups: each block uses its own row of one all-reduce.
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
        NotInitializedError: Called under `strategy.scope()` of several replicas but outside
            `strategy.run`, where there is no replica context.
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
    """Starts the cluster in TF_CONFIG; None if it has fewer than two workers.

    Tasks of Slurm get a TF_CONFIG here.
    """
    if not os.environ.get("TF_CONFIG") and slurm.rank_and_size(os.environ) is not None:
        os.environ["TF_CONFIG"] = slurm.tf_config(os.environ)
    addresses, rank = cluster_from_tf_config(os.environ.get("TF_CONFIG") or "{}")
    if len(addresses) < 2:
        return None
    if not 0 <= rank < len(addresses):
        raise WorldError(
            f"TF_CONFIG's task index must lie in 0..{len(addresses) - 1}. Received: {rank}"
        )
    bind_address = listening.address_of(addresses[rank])
    try:
        with listening.only_on(bind_address) if bind_address else nullcontext():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise WorldError(
            "the tf backend must be initialised before TensorFlow runs its first operation: call "
            f"syncbn.init('tf') at the top of the program (TensorFlow: {error})"
        ) from error
    return ClusterCommunicator(strategy, addresses, rank)
