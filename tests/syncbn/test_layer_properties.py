"""Random shapes, axes, shards and masks against the oracle; finite differences in float64."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncbn import SyncBatchNormalization
from tests.syncbn import oracle
from tests.syncbn.oracle import relative_error
from tests.syncbn.worlds import StrategyWorld, mirrored

EPSILON = 1e-3


@dataclass(frozen=True)
class Drawn:
    """A global batch and its division: `rows` has one entry per replica, possibly zero."""

    shape: tuple[int, ...]
    axis: int
    rows: tuple[int, ...]
    extra: str
    seed: int
    mean: float


@st.composite
def drawn(draw: st.DrawFn, replicas: int) -> Drawn:
    rows = tuple(draw(st.integers(0, 5)) for _ in range(replicas))
    tail = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    shape = (sum(rows), *tail)
    return Drawn(
        shape,
        draw(st.integers(1, len(tail)) | st.integers(-len(tail), -1)),
        rows,
        draw(st.sampled_from(["nothing", "mask", "batch_weights", "both"])),
        draw(st.integers(0, 2**20)),
        draw(st.sampled_from([0.0, 1.0, 1e3])),
    )


def _run(world: StrategyWorld | None, case: Drawn) -> None:
    generator = np.random.default_rng(case.seed)
    x = generator.normal(size=case.shape) + case.mean
    dy = generator.normal(size=case.shape)
    gamma = generator.uniform(0.5, 2.0, case.shape[case.axis])
    weights = np.ones([1] * x.ndim)
    per_sample: dict[str, np.ndarray] = {}
    if case.extra in ("mask", "both"):
        per_sample["mask"] = generator.uniform(size=case.shape[:-1]) > 0.4
        weights = weights * per_sample["mask"][..., None]
    if case.extra in ("batch_weights", "both"):
        per_sample["batch_weights"] = generator.choice([0.0, 0.5, 1.0, 3.0], size=len(x))
        weights = weights * per_sample["batch_weights"].reshape([-1] + [1] * (x.ndim - 1))
    exact = oracle.normalize(x, dy, gamma, 0 * gamma, case.axis, EPSILON, weights)

    def make() -> Any:
        layer = SyncBatchNormalization(
            axis=case.axis, epsilon=EPSILON, momentum=0.0, dtype="float64"
        )
        layer.build((None, *case.shape[1:]))
        layer.gamma.assign(gamma)
        return layer

    def step(x: tf.Tensor, dy: tf.Tensor, *extra: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, **dict(zip(per_sample, extra, strict=True)))
        return [y, *tape.gradient(y, [x, layer.gamma.value], output_gradients=dy)]

    cuts = np.cumsum([0, *case.rows])
    shards = [slice(a, b) for a, b in pairwise(cuts)]
    parts = [x, dy, *per_sample.values()]
    if world is None:
        layer = make()
        results = [[v.numpy() for v in step(*(tf.constant(part) for part in parts))]]
        shards = [slice(None)]
    else:
        with world.scope():
            layer = make()
        results = world.compile(step, graph=False)([[p[s] for p in parts] for s in shards])
    axes = tuple(i for i in range(x.ndim) if i != case.axis % x.ndim)
    # The result is small for two nearly equal samples, or a single one: errors are relative to the
    # terms that cancel.
    plain = 0.1 * np.linalg.norm(dy)
    inverse = oracle.spread(1.0 / np.sqrt(exact.moments.variance + EPSILON), x, case.axis)
    whole_dx = 0.1 * np.linalg.norm(dy * oracle.spread(gamma, x, case.axis) * inverse)
    for index, (shard, ours) in enumerate(zip(shards, results, strict=True)):
        dgamma = exact.dgamma[shard].sum(axis=axes)
        for got, expected, joined, least in (
            (ours[0], exact.outputs[shard], exact.outputs, plain),
            (ours[1], exact.dx[shard], exact.dx, whole_dx),
            (ours[2], dgamma, exact.dgamma, plain),
        ):
            scale = max(np.linalg.norm(joined), least)
            assert np.linalg.norm(got - expected) <= 1e-11 * scale, index
    counted = exact.moments.count > 0
    expected = np.where(counted, exact.moments.mean, 0.0)
    assert relative_error(layer.moving_mean.numpy(), expected) < 1e-12
    expected = np.where(counted, exact.moments.variance, 1.0)
    difference = np.linalg.norm(layer.moving_variance.numpy() - expected)
    # For equal values only the last bits of the square of the pivot's rest may remain.
    assert difference <= 1e-11 * np.linalg.norm(expected) + 1e-19 * (1.0 + case.mean**2)


@settings(max_examples=60, deadline=None)
@given(drawn(replicas=1))
def test_drawn_cases_in_one_process(case: Drawn) -> None:
    _run(None, case)


@pytest.fixture(scope="module", params=[2, 3])
def replicas(request: pytest.FixtureRequest) -> StrategyWorld:
    return mirrored(request.param)


@settings(
    max_examples=25,
    deadline=None,
    # All examples use the same stateless replicas.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_drawn_cases_on_replicas(replicas: StrategyWorld, data: st.DataObject) -> None:
    _run(replicas, data.draw(drawn(replicas=replicas.size)))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"axis": 1},
        {"scale": False, "center": False},
        {"virtual_batch_size": 3},
        {"activation": "tanh"},
        {
            "adjustment": lambda shape: (
                tf.fill([shape[0], 1, 1], tf.constant(1.5, tf.float64)),
                0.5,
            )
        },
    ],
    ids=lambda arguments: "-".join(arguments) or "defaults",
)
@pytest.mark.parametrize("extra", ["nothing", "mask", "batch_weights"])
def test_gradients_are_the_finite_differences(arguments: dict[str, Any], extra: str) -> None:
    generator = np.random.default_rng(0)
    shape = (6, 4, 3)
    layer = SyncBatchNormalization(dtype="float64", epsilon=0.01, **arguments)
    layer.build(shape)
    if layer.scale:
        layer.gamma.assign(generator.uniform(0.5, 2.0, shape[layer.axis]))
    call: dict[str, Any] = {}
    if extra == "mask":
        call["mask"] = generator.uniform(size=shape[:2]) > 0.3
    if extra == "batch_weights":
        call["batch_weights"] = generator.uniform(0.2, 2.0, size=6)
    dy = generator.normal(size=shape)
    x = tf.Variable(generator.normal(size=shape) * 2.0 + 3.0)
    variables = [x, *(w.value for w in layer.trainable_weights)]

    def loss() -> tf.Tensor:
        return tf.reduce_sum(layer(x, training=True, **call) * dy)

    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, variables)
    step = 1e-5
    for variable, gradient in zip(variables, gradients, strict=True):
        for _ in range(4):
            direction = generator.normal(size=variable.shape)
            start = variable.numpy()
            variable.assign(start + step * direction)
            above = loss()
            variable.assign(start - step * direction)
            below = loss()
            variable.assign(start)
            slope = float(above - below) / (2 * step)
            assert abs(float(np.sum(gradient * direction)) - slope) <= 1e-7 * (1 + abs(slope))
