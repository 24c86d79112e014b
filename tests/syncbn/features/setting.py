"""The parts of every check: a global batch, a layer, its step, and a record of errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from syncbn import SyncBatchNormalization
from tests.syncbn import oracle
from tests.syncbn.worlds import World

Report = dict[str, Any]
Check = Callable[[World], list[Report]]

EPSILON = 1e-3
CHANNELS = 3


@dataclass(frozen=True)
class Batch:
    """The global batch: each rank has its own rows, higher ranks have more."""

    x: np.ndarray
    dy: np.ndarray
    cuts: tuple[int, ...]
    batch_axis: int = 0

    def shard(self, rank: int, joined: np.ndarray | None = None) -> np.ndarray:
        joined = self.x if joined is None else joined
        rows = range(self.cuts[rank], self.cuts[rank + 1])
        return np.take(joined, rows, axis=self.batch_axis)


def make_batch(
    world: World,
    tail: Sequence[int] = (CHANNELS,),
    rows: Callable[[int], int] = lambda rank: 4 + 2 * rank,
    batch_axis: int = 0,
    seed: int = 0,
) -> Batch:
    """Rank r has `rows(r)` rows of shape `tail`, or slices of it along `batch_axis`."""
    counts = [rows(rank) for rank in range(world.size)]
    generator = np.random.default_rng([seed, world.size])
    shape = list(tail)
    shape.insert(batch_axis, sum(counts))
    x = generator.normal(size=shape) * 2.0 + 5.0
    return Batch(x, generator.normal(size=shape), tuple(np.cumsum([0, *counts])), batch_axis)


def make_layer(world: World, shape: Sequence[int | None], **arguments: Any) -> Any:
    """A built float64 layer with non-initial γ, β and moving statistics."""
    settings = {"momentum": 0.75, "epsilon": EPSILON, "dtype": "float64", **arguments}
    with world.scope():
        layer = SyncBatchNormalization(**settings)
        layer.build(tuple(shape))
        channels = int(shape[layer.axis] or 0)
        generator = np.random.default_rng(9)
        layer.gamma.assign(generator.uniform(0.5, 2.0, channels))
        layer.beta.assign(generator.normal(size=channels))
    return layer


def train_step(layer: Any, *names: str) -> Callable[..., dict[str, tf.Tensor]]:
    """A step of one layer; additional per-sample arguments are passed as `names`, in order."""

    def step(x: tf.Tensor, dy: tf.Tensor, *extra: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, **dict(zip(names, extra, strict=True)))
        sources = [x, layer.gamma.value, layer.beta.value]
        dx, dgamma, dbeta = tape.gradient(y, sources, output_gradients=dy)
        return {"outputs": y, "dx": dx, "dgamma": dgamma, "dbeta": dbeta}

    return step


@dataclass
class Ledger:
    """Collects one report per held rank."""

    world: World
    reports: list[Report] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reports = [{"errors": {}, "same": ""} for _ in self.world.held]

    def compare(
        self, name: str, place: int, ours: np.ndarray, exact: Any, norm: Any = None
    ) -> None:
        """Records ‖ours − exact‖ / ‖norm‖; `norm` defaults to `exact`."""
        exact = np.asarray(exact, np.float64)
        if ours.shape != exact.shape:
            raise AssertionError(f"{name}: shape {ours.shape}, expected {exact.shape}")
        scale = float(np.linalg.norm(exact if norm is None else norm)) or 1.0
        error = float(np.linalg.norm(ours - exact)) / scale
        errors = self.reports[place]["errors"]
        # A comparison with NaN must not pass.
        errors[name] = max(errors.get(name, 0.0), error) if np.isfinite(error) else 1e300

    def step(
        self,
        batch: Batch,
        results: list[dict[str, np.ndarray]],
        exact: oracle.Normalized,
        axis: int,
    ) -> None:
        axes = tuple(i for i in range(exact.outputs.ndim) if i != axis % exact.outputs.ndim)
        for place, (rank, ours) in enumerate(zip(self.world.held, results, strict=True)):
            for name, joined in (("outputs", exact.outputs), ("dx", exact.dx)):
                self.compare(name, place, ours[name], batch.shard(rank, joined), joined)
            for name, joined in (("dgamma", exact.dgamma), ("dbeta", exact.dbeta)):
                local = batch.shard(rank, joined).sum(axis=axes)
                self.compare(name, place, ours[name], local, joined.sum(axis=axes))

    def variables(self, **pairs: tuple[Any, Any]) -> None:
        """Compares variables with exact values, and records their bits."""
        for name, (variable, exact) in pairs.items():
            for place, value in enumerate(self.world.values(variable)):
                self.compare(name, place, value, exact)
                self.reports[place]["same"] += value.tobytes().hex()


def one_step(
    world: World,
    batch: Batch,
    layer: Any,
    exact: oracle.Normalized,
    graph: bool = False,
    moving: tuple[Any, Any] | None = None,
    per_sample: dict[str, np.ndarray] | None = None,
) -> list[Report]:
    """Runs one step and compares all results; `moving` is the exact batch mean and variance."""
    ledger = Ledger(world)
    per_sample = per_sample or {}
    runner = world.compile(train_step(layer, *per_sample), graph)
    arguments = [
        [
            batch.shard(r),
            batch.shard(r, batch.dy),
            *(batch.shard(r, e) for e in per_sample.values()),
        ]
        for r in range(world.size)
    ]
    ledger.step(batch, runner(arguments), exact, layer.axis)
    mean, variance = moving or (exact.moments.mean, exact.moments.variance)
    ledger.variables(
        moving_mean=(layer.moving_mean, oracle.move(0.0, mean, layer.momentum)),
        moving_variance=(layer.moving_variance, oracle.move(1.0, variance, layer.momentum)),
    )
    return ledger.reports


def exact_results(layer: Any, batch: Batch, **arguments: Any) -> oracle.Normalized:
    gamma, beta = np.array(layer.gamma.numpy()), np.array(layer.beta.numpy())
    return oracle.normalize(batch.x, batch.dy, gamma, beta, layer.axis, EPSILON, **arguments)
