"""Communicators in one process: the local one, names, packing, and the current communicator."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorflow as tf

import syncbn
from syncbn.communicators import Communicator, resolve, shutdown
from syncbn.communicators.base import pack_by_dtype, unique_name
from syncbn.communicators.distribute import ClusterCommunicator, ReplicaCommunicator
from syncbn.communicators.local import LocalCommunicator
from syncbn.errors import (
    MissingBackendError,
    NotInitializedError,
    SyncbnError,
    UnknownBackendError,
    WorldError,
)
from tests.processes import Launcher
from tests.requirements import require_horovod
from tests.syncbn.worlds import mirrored


@pytest.fixture
def fresh() -> Iterator[None]:
    """A process that has not called `init`, before and after."""
    shutdown()
    yield
    shutdown()


def test_local_operations_are_the_identity() -> None:
    local = LocalCommunicator()
    tensor = tf.constant([1.0, 2.0])
    assert (local.rank, local.size, local.local_rank, local.local_size) == (0, 1, 0, 1)
    assert local.all_reduce(tensor, "x") is tensor
    assert local.all_reduce_many([tensor], "x") == [tensor]
    assert local.broadcast([tensor]) == [tensor]
    local.barrier()
    assert local.subgroup(1) is local
    assert repr(local) == "LocalCommunicator(rank=0, size=1)"


@pytest.mark.parametrize("size", [0, -1, 2, 1.0, True, "1"])
def test_group_size_must_divide(size: object) -> None:
    with pytest.raises(WorldError, match="group_size must divide the 1 ranks") as caught:
        LocalCommunicator().subgroup(size)  # type: ignore[arg-type]
    assert f"Received: group_size={size!r}" in str(caught.value)


def test_packing_keeps_order_shapes_and_dtypes() -> None:
    tensors = [tf.zeros([2, 3]), tf.constant(1, tf.int32), tf.ones([0]), tf.ones([], tf.float64)]
    sent = []

    def reduce(flat: tf.Tensor, dtype: str) -> tf.Tensor:
        sent.append((dtype, flat.shape[0]))
        return flat * 2

    received = pack_by_dtype(tensors, reduce)
    assert sent == [("float32", 6), ("int32", 1), ("float64", 1)]
    assert [(t.shape, t.dtype) for t in received] == [(t.shape, t.dtype) for t in tensors]
    assert [int(received[1]), float(received[3])] == [2, 2.0]


def test_names_are_unique_within_a_graph_and_equal_between_traces() -> None:
    def trace() -> list[str]:
        names: list[str] = []
        step = tf.function(lambda: names.extend(unique_name(s) for s in ("a", "b", "a", "a")))
        step.get_concrete_function()
        return names

    assert trace() == trace() == ["a/1", "b/1", "a/2", "a/3"]
    assert unique_name("a") == unique_name("a") == "a"


@pytest.mark.usefixtures("fresh")
def test_a_single_process_is_local_without_init() -> None:
    assert syncbn.communicator().name == "local"
    assert all(resolve(name).name == "local" for name in ("auto", "horovod", "mpi", "tf", "local"))
    assert syncbn.init() is syncbn.init("local") is syncbn.communicator()


@pytest.mark.usefixtures("fresh")
def test_one_process_has_one_backend() -> None:
    syncbn.init("local")
    with pytest.raises(WorldError, match=r"already uses the local .*backend='mpi'"):
        syncbn.init("mpi")


@pytest.mark.usefixtures("fresh")
def test_a_backend_with_fewer_ranks_than_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(NotInitializedError, match=r"rank 0 of 2 \(PMI_SIZE\).*call syncbn.init"):
        syncbn.communicator()
    with pytest.raises(WorldError, match=r"the tf backend sees 1 rank\(s\), but PMI_SIZE says 2"):
        syncbn.init("tf")
    syncbn.init("local")  # Deliberately a single process.
    assert syncbn.communicator().size == 1


def test_resolve_takes_a_communicator_as_it_is() -> None:
    mine = LocalCommunicator()
    assert resolve(mine) is mine
    with pytest.raises(UnknownBackendError, match=r"communicator must be .*'gloo'"):
        resolve("gloo")


@pytest.mark.usefixtures("fresh")
def test_replicas_are_found_inside_strategy_run_only() -> None:
    world = mirrored(2)
    found: list[Communicator] = []
    world.strategy.run(lambda: found.append(resolve("auto")))
    assert [type(one) for one in found] == [ReplicaCommunicator] * 2
    assert sorted(one.rank for one in found) == [0, 1]
    assert {one.size for one in found} == {2}
    assert {(one.local_rank, one.local_size) for one in found} == {
        (0, 2),
        (1, 2),
    }
    assert resolve("auto").name == "local"
    with (
        world.strategy.scope(),
        pytest.raises(NotInitializedError, match=r"write strategy.run\(step"),
    ):
        resolve("auto")


@pytest.mark.usefixtures("fresh")
def test_a_strategy_must_not_leave_out_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    # The replicas of a process would share statistics, but silently not the processes.
    def inside(choice: str) -> list[Communicator]:
        found: list[Communicator] = []
        mirrored(2).strategy.run(lambda: found.append(resolve(choice)))
        return found

    with pytest.raises(WorldError, match=r"asks for the mpi .* inside strategy.run of 2"):
        inside("mpi")
    monkeypatch.setenv("PMI_SIZE", "3")
    with pytest.raises(WorldError, match="the 2 replicas of this process, and the job has 3"):
        inside("auto")
    assert [one.size for one in inside("tf")] == [2, 2]
    assert [one.size for one in inside("local")] == [1, 1]


def test_replicas_sum_broadcast_and_group() -> None:
    def step(mine: tf.Tensor) -> list[tf.Tensor]:
        communicator = resolve("auto")
        communicator.barrier()
        pair = communicator.subgroup(2)
        return [
            communicator.all_reduce(mine, "sum"),
            *communicator.all_reduce_many([mine, tf.cast(mine, tf.int64)], "many"),
            communicator.broadcast([mine], root=3)[0],
            pair.all_reduce(mine, "pair"),
            communicator.subgroup(1).all_reduce(mine, "alone"),
        ]

    for graph in (False, True):
        results = mirrored(4).compile(step, graph)([[float(10**rank)] for rank in range(4)])
        for rank, ours in enumerate(results):
            pair = 11.0 if rank < 2 else 1100.0
            assert [float(v) for v in ours] == [1111.0, 1111.0, 1111, 1000.0, pair, 10.0**rank]


def test_errors_are_one_tree() -> None:
    for kind in (NotInitializedError, MissingBackendError, UnknownBackendError, WorldError):
        assert issubclass(kind, SyncbnError)
    assert issubclass(UnknownBackendError, ValueError)
    assert issubclass(MissingBackendError, ImportError)


ALONE = """
import json, sys
import syncbn
communicator = syncbn.init(sys.argv[1])
communicator.barrier()
fields = ("name", "rank", "size", "local_rank", "local_size")
print(json.dumps([getattr(communicator, field) for field in fields]))
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("backend", ["mpi", "horovod", "tf", "auto"])
def test_a_plain_process_is_a_world_of_one_on_every_backend(
    backend: str, single_process: Launcher, script: Callable[[str], Path]
) -> None:
    # Open MPI from a wheel aborted a process that mpirun did not start.
    if backend == "horovod":
        require_horovod()
    (answer,) = single_process(1, script(ALONE), [backend]).json()
    name = backend if backend in ("mpi", "horovod") else "local"
    assert answer == [name, 0, 1, 0, 1]


def _keys(graph: tf.Graph) -> list[int]:
    gathers = [op for op in graph.get_operations() if op.type == "CollectiveGatherV2"]
    return [int(tf.get_static_value(op.inputs[3])) for op in gathers]


def test_sums_of_a_cluster_keep_their_keys_and_never_share_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = ClusterCommunicator(tf.distribute.get_strategy(), ["a:1", "b:1"], 0)

    def step(x: tf.Tensor) -> list[tf.Tensor]:
        return [cluster.all_reduce(x, name) for name in ("first", "second", "second")]

    def trace() -> list[int]:
        return _keys(tf.function(step).get_concrete_function(tf.zeros([3], tf.float64)).graph)

    assert len(set(trace())) == 3
    assert trace() == trace()
    # Even if their names have the same checksum.
    monkeypatch.setattr("zlib.crc32", lambda _: 7)
    cluster = ClusterCommunicator(tf.distribute.get_strategy(), ["a:1", "b:1"], 0)
    assert len(set(trace())) == 3
    assert trace() == trace()


def test_blocks_are_made_anew_when_the_world_has_another_size() -> None:
    class Elastic(LocalCommunicator):
        world = 4

        @property
        def size(self) -> int:
            return self.world

        def _make_subgroup(self, size: int) -> Communicator:
            return Elastic()

    communicator = Elastic()
    before = communicator.subgroup(2)
    assert communicator.subgroup(2) is before
    communicator.world = 8
    assert communicator.subgroup(2) is not before
