"""The rules of the mathematics, one test each; the oracle matrix tests them on every backend."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import syncbn
from syncbn import SyncBatchNormalization
from syncbn.communicators import shutdown
from syncbn.communicators.local import LocalCommunicator
from syncbn.errors import NotInitializedError
from tests.processes import Launcher
from tests.syncbn import oracle
from tests.syncbn.oracle import relative_error
from tests.syncbn.worlds import World, mirrored

CHANNELS = 3


def run(
    world: World, layer: Any, shards: list[list[np.ndarray]], *names: str
) -> list[dict[str, np.ndarray]]:
    """One eager step; the first array of a shard is x, the others go by `names`."""

    def step(x: tf.Tensor, *extra: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, **dict(zip(names, extra, strict=True)))
            loss = tf.reduce_sum(y**3)
        dx, dgamma = tape.gradient(loss, [x, layer.gamma.value])
        return {"y": y, "dx": dx, "dgamma": dgamma}

    return world.compile(step, graph=False)(shards)


def make(world: World, **arguments: Any) -> Any:
    with world.scope():
        layer = SyncBatchNormalization(**{"momentum": 0.0, **arguments})
        layer.build((None, CHANNELS))
    return layer


def test_rule_1_statistics_of_all_samples_weighted_by_count_also_without_rows() -> None:
    world = mirrored(3)
    x = np.random.default_rng(1).normal(size=(9, CHANNELS)).astype("float32")
    layer = make(world)
    results = run(world, layer, [[x[:7]], [x[7:7]], [x[7:]]])
    assert relative_error(layer.moving_mean.numpy(), x.mean(axis=0)) < 1e-6
    assert relative_error(layer.moving_variance.numpy(), x.var(axis=0)) < 1e-6
    # The empty rank joined both collectives, otherwise the step would not have ended.
    assert results[1]["dx"].shape == (0, CHANNELS)
    np.testing.assert_array_equal(results[1]["dgamma"], np.zeros(CHANNELS))


def test_rule_2_no_float32_squares_of_far_values() -> None:
    world = mirrored(3)
    generator = np.random.default_rng(2)
    x = (generator.normal(size=(90, CHANNELS)) + 1e5).astype("float32")
    layer = make(world)
    results = run(world, layer, [[x[:30]], [x[30:60]], [x[60:]]])
    y = np.concatenate([r["y"] for r in results])
    exact = oracle.normalize(x, 3.0 * y**2, np.ones(CHANNELS), np.zeros(CHANNELS))
    assert relative_error(layer.moving_variance.numpy(), exact.moments.variance) < 2e-6
    assert relative_error(y, exact.outputs) < 2e-6
    assert relative_error(np.concatenate([r["dx"] for r in results]), exact.dx) < 2e-6


def test_rule_3_moving_statistics_come_from_reduced_values_only() -> None:
    world = mirrored(3)
    generator = np.random.default_rng(3)
    shards = [[generator.normal(size=(n, CHANNELS)).astype("float32")] for n in (5, 1, 8)]
    for arguments in ({}, {"renorm": True}, {"zero_debias_moving_mean": True, "momentum": 0.9}):
        layer = make(world, **arguments)
        for _ in range(3):
            run(world, layer, shards)
        for variable in layer.non_trainable_variables:
            bits = {value.tobytes() for value in world.values(variable)}
            assert len(bits) == 1, variable.name
    # No samples: statistics do not change.
    before = [world.values(v) for v in layer.non_trainable_variables]
    run(world, layer, [[x[0][:0]] for x in shards])
    np.testing.assert_array_equal(before, [world.values(v) for v in layer.non_trainable_variables])
    # The population variance, or n/(n − 1) on request, with n over all ranks.
    joined = np.concatenate([x[0] for x in shards])
    for bessel in (False, True):
        layer = make(world, bessel_correction=bessel)
        run(world, layer, shards)
        expected = joined.var(axis=0, ddof=int(bessel))
        assert relative_error(layer.moving_variance.numpy(), expected) < 1e-6


def test_rule_4_masked_values_are_not_touched_and_the_mask_is_synchronized() -> None:
    world = mirrored(2)
    generator = np.random.default_rng(4)
    x = generator.normal(size=(6, 4, CHANNELS)).astype("float32")
    mask = generator.uniform(size=(6, 4)) > 0.5
    mask[4:] = False  # Masks most of the second rank.
    x[~mask] = np.nan
    with world.scope():
        layer = SyncBatchNormalization(momentum=0.0)
        layer.build((None, 4, CHANNELS))
    results = run(world, layer, [[x[:3], mask[:3]], [x[3:], mask[3:]]], "mask")
    assert all(np.all(np.isfinite(value)) for result in results for value in result.values())
    assert relative_error(layer.moving_mean.numpy(), x[mask].mean(axis=0)) < 1e-6
    assert relative_error(layer.moving_variance.numpy(), x[mask].var(axis=0)) < 1e-6


def test_rule_5_few_values_are_counted_over_all_ranks() -> None:
    world = mirrored(3)
    x = np.random.default_rng(5).normal(size=(3, CHANNELS)).astype("float32")
    layer = make(world, bessel_correction=True)
    run(world, layer, [[x[:1]], [x[1:2]], [x[2:]]])  # One value per rank is valid,
    assert relative_error(layer.moving_variance.numpy(), x.var(axis=0, ddof=1)) < 1e-6
    results = run(world, layer, [[x[:1]], [x[:0]], [x[:0]]])  # and so is one in the world:
    np.testing.assert_array_equal(results[0]["y"], np.zeros((1, CHANNELS)))  # β, no NaN.
    np.testing.assert_array_equal(layer.moving_variance.numpy(), np.zeros(CHANNELS))


def test_rule_6_corrections_and_updates_carry_no_gradient() -> None:
    generator = np.random.default_rng(6)
    x = tf.constant(generator.normal(size=(8, CHANNELS)) * 2.0 + 1.0)
    dy = generator.normal(size=(8, CHANNELS))
    layer = SyncBatchNormalization(renorm=True, dtype="float64", momentum=0.5)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = layer(x, training=True)
        moved = [tf.convert_to_tensor(v) for v in layer.non_trainable_variables]
    # The oracle treats r and d as constants; their derivatives would change dx.
    batch = oracle.moments(x.numpy())
    r, d = oracle.renorm_correction(batch, np.zeros(3), np.ones(3), 1e-3, {})
    exact = oracle.normalize(x.numpy(), dy, np.ones(3), np.zeros(3), r=r, d=d)
    assert relative_error(tape.gradient(y, x, output_gradients=dy), exact.dx) < 1e-12
    assert [tape.gradient(value, x) for value in moved] == [None] * len(moved)


class Recorder(LocalCommunicator):
    """A world of one that records the names of its sums."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def all_reduce(self, tensor: tf.Tensor, name: str) -> tf.Tensor:
        self.names.append(name)
        return tensor


def test_rule_7_every_call_has_its_own_name_and_place_on_all_ranks() -> None:
    def trace() -> list[str]:
        """The collectives of one rank in a step with branches and a layer used twice."""
        communicator = Recorder()
        left, right, last = (
            SyncBatchNormalization(communicator=communicator, name=name)
            for name in ("left", "right", "last")
        )
        for layer in (left, right, last):
            layer.build((None, CHANNELS))

        @tf.function
        def step(x: tf.Tensor) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                first, second = left(x, training=True), left(x * 2.0, training=True)
                y = last(first + right(second, training=True), training=True)
            return tape.gradient(y, x)

        step.get_concrete_function(tf.TensorSpec([4, CHANNELS]))
        return communicator.names

    names = trace()
    assert len(names) == 8, "four calls, one collective forward and one backward each"
    assert max(Counter(names).values()) == 1
    assert [name.split("/")[0] for name in names[:5]] == ["left", "left", "right", "last", "last"]
    assert names == trace()


@pytest.fixture
def rendezvous() -> Iterator[int]:
    """The port of Horovod's rendezvous server for two ranks of this machine."""
    hosts = pytest.importorskip("horovod.runner.common.util.hosts")
    server = pytest.importorskip("horovod.runner.http.http_server").RendezvousServer(0)
    port = server.start()
    server.init(hosts.get_host_assignments(hosts.parse_hosts("localhost:2"), 2))
    yield port
    server.stop()
    server._httpd.server_close()


@pytest.mark.multiprocess
@pytest.mark.timeout(90)
def test_rule_8_a_graph_outlives_a_resize_of_the_world(
    rendezvous: int, single_process: Launcher
) -> None:
    program, gloo = "tests.syncbn.resize_program", {"HOROVOD_CONTROLLER": "gloo"}
    gloo |= {"HOROVOD_CPU_OPERATIONS": "gloo"}  # As in every elastic job: MPI cannot resize.
    jobs = [
        single_process.start(1, program, [str(rank), str(rendezvous)], environment=gloo)
        for rank in range(2)
    ]
    for rank, job in enumerate(jobs):
        (answer,) = job.wait(80).json()
        assert answer["alone"] == [2.0 + 10.0 * rank, 1.0]
        assert answer["joined"] == [7.0, 26.0]
        assert answer["size"] == 2
        assert answer["traces"] == [1], "the graph of the world of one was used again"


@pytest.mark.parametrize(
    "variables",
    [
        {"HOROVOD_SIZE": "2", "HOROVOD_RANK": "1"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
        {"PMI_SIZE": "2", "PMI_RANK": "1"},
        {
            "TF_CONFIG": json.dumps(
                {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
            )
        },
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_rule_9_several_processes_without_init_are_an_error(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutdown()
    x = np.random.default_rng(9).normal(size=(4, CHANNELS)).astype("float32")
    layer = SyncBatchNormalization()
    alone = layer(x, training=True)  # A single process needs no `init`:
    assert relative_error(alone, keras.layers.BatchNormalization()(x, training=True)) < 1e-6
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(NotInitializedError, match=r"rank 1 of 2 .*call syncbn\.init\(\)"):
        layer(x, training=True)
    with pytest.raises(NotInitializedError, match=r"call syncbn\.init\(\)"):
        syncbn.communicator()
    layer(x, training=False)  # Inference does not communicate,
    SyncBatchNormalization(synchronized=False)(x, training=True)  # nor do local statistics.
