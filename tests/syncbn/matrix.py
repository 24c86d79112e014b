"""The cases of the oracle matrix, and their execution in one world.

Every rank generates the data of all ranks, computes the oracle of the global batch, and reports,
for each case and quantity, its contribution to ‖ours − oracle‖² and ‖oracle‖², which the tests sum.
A case is a training step through a dense layer followed by the batch normalization; in those of
kind "residual" a residual is added, and a ReLU follows.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from syncbn import SyncBatchNormalization
from tests.syncbn import oracle
from tests.syncbn.worlds import World

KINDS = ("even", "uneven", "empty", "mask", "weights", "residual")
MODES = ("eager", "graph")
POLICIES = {
    "float32": "float32",
    "float64": "float64",
    "float16": "mixed_float16",
    "bfloat16": "mixed_bfloat16",
}
# The mean for a standard deviation of 1, limited by half precision.
FULL_CONDITIONS = {"0": 0.0, "1e3": 1e3, "1e5": 1e5, "outlier": 0.0}
HALF_CONDITIONS = {"0": 0.0, "30": 30.0}
OUTLIER = 1e4

ROWS = {
    "even": {1: (12,), 2: (6, 6), 3: (5, 5, 5)},
    "uneven": {1: (13,), 2: (9, 4), 3: (3, 9, 6)},
    "empty": {1: (0,), 2: (11, 0), 3: (7, 0, 6)},
    "mask": {1: (12,), 2: (8, 6), 3: (6, 4, 7)},
    "weights": {1: (12,), 2: (8, 6), 3: (6, 4, 7)},
    "residual": {1: (13,), 2: (9, 4), 3: (4, 0, 9)},
}
STEPS, CHANNELS, EPSILON = 4, 8, 1e-3

# The argument of the layer by kind.
_ARGUMENTS = {"mask": "mask", "weights": "batch_weights", "residual": "residual"}

QUANTITIES = ("outputs", "dx", "dgamma", "dbeta", "upstream", "moving_mean", "moving_variance")


def quantities(kind: str) -> tuple[str, ...]:
    return (*QUANTITIES, "dresidual") if kind == "residual" else QUANTITIES


def conditions(dtype: str) -> dict[str, float]:
    return FULL_CONDITIONS if dtype in ("float32", "float64") else HALF_CONDITIONS


def case_name(kind: str, mode: str, dtype: str, condition: str) -> str:
    return f"{kind}-{mode}-{dtype}-{condition}"


def case_names(dtypes: Sequence[str]) -> list[str]:
    return [
        case_name(kind, mode, dtype, condition)
        for kind in KINDS
        for mode in MODES
        for dtype in dtypes
        for condition in conditions(dtype)
    ]


@dataclass(frozen=True)
class Joined:
    """The data of all ranks for one case: `cuts` are the first rows of the ranks, and the end."""

    hidden: np.ndarray
    upstream_gradient: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    mask: np.ndarray | None
    weights: np.ndarray | None
    residual: np.ndarray | None
    cuts: tuple[int, ...]

    @cached_property
    def exact(self) -> oracle.Normalized:
        """The oracle's result for the exact inputs of the normalization."""
        # The kernel is a signed permutation: the dense layer multiplies exactly and rounds once.
        order, sign = np.abs(self.kernel).argmax(axis=0), self.kernel.sum(axis=0)
        dtype = self.hidden.dtype
        inputs = self.hidden[..., order] * sign.astype(dtype) + self.bias.astype(dtype)
        weights: np.ndarray | None = None
        if self.mask is not None:
            weights = self.mask[..., None].astype(np.float64)
        if self.weights is not None:
            weights = self.weights[:, None, None].astype(np.float64)

        def normalized(dy: np.ndarray) -> oracle.Normalized:
            return oracle.normalize(inputs, dy, self.gamma, self.beta, -1, EPSILON, weights)

        if self.residual is None:
            return normalized(self.upstream_gradient)
        total = normalized(self.upstream_gradient).outputs + self.residual.astype(np.float64)
        gated = normalized(np.where(total > 0, np.asarray(self.upstream_gradient, np.float64), 0.0))
        return dataclasses.replace(gated, outputs=np.maximum(total, 0.0))

    def shard(self, rank: int) -> slice:
        return slice(self.cuts[rank], self.cuts[rank + 1])

    def arguments(self, rank: int) -> list[np.ndarray]:
        """The arguments of the step of this rank."""
        rows = self.shard(rank)
        extra = [part for part in (self.mask, self.weights, self.residual) if part is not None]
        return [part[rows] for part in (self.hidden, self.upstream_gradient, *extra)]


def draw(kind: str, size: int, dtype: str, condition: str) -> Joined:
    """The data of the global batch, the same on every rank."""
    generator = np.random.default_rng([KINDS.index(kind), size])
    rows = ROWS[kind][size]
    numpy_dtype = tf.as_dtype(dtype).as_numpy_dtype
    shape = (sum(rows), STEPS, CHANNELS)
    hidden = generator.normal(size=shape)
    if condition == "outlier" and len(hidden):
        hidden[0, 0] = OUTLIER
    mask = weights = None
    if kind == "mask":
        mask = generator.uniform(size=shape[:2]) > 0.4
        mask[0, 0] = True
        mask[-2:] = False
    if kind == "weights":
        weights = generator.choice([0.0, 0.5, 1.0, 2.0, 3.25], size=shape[0]).astype("float32")
        weights[0] = 1.0
    kernel = np.eye(CHANNELS)[generator.permutation(CHANNELS)]
    kernel *= generator.choice([-1.0, 1.0], size=CHANNELS)
    mean = conditions(dtype)[condition] * generator.uniform(0.6, 1.0, CHANNELS)
    upstream_gradient = generator.normal(size=shape)
    residual = generator.normal(size=shape) if kind == "residual" else None
    return Joined(
        hidden.astype(numpy_dtype),
        upstream_gradient.astype(numpy_dtype),
        kernel.astype("float32"),
        mean.astype("float32"),
        generator.uniform(0.5, 2.0, CHANNELS).astype("float32"),
        generator.normal(size=CHANNELS).astype("float32"),
        mask,
        weights,
        None if residual is None else residual.astype(numpy_dtype),
        tuple(np.cumsum((0, *rows)).tolist()),
    )


def run(world: World, dtypes: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Every case of these dtypes on this world; for each the reports of the ranks held here."""
    return {
        name: report
        for kind in KINDS
        for mode in MODES
        for dtype in dtypes
        for name, report in _run(world, kind, mode, dtype)
    }


def _run(
    world: World, kind: str, mode: str, dtype: str
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    policy = POLICIES[dtype]
    with world.scope():
        dense = keras.layers.Dense(CHANNELS, dtype=policy)
        # With momentum 0 the moving statistics are those of the batch.
        activation = "relu" if kind == "residual" else None
        layer = SyncBatchNormalization(
            momentum=0.0, epsilon=EPSILON, dtype=policy, activation=activation
        )
        dense.build((None, STEPS, CHANNELS))
        layer.build((None, STEPS, CHANNELS))

    def step(hidden: tf.Tensor, dy: tf.Tensor, *extra: tf.Tensor) -> dict[str, tf.Tensor]:
        options = {_ARGUMENTS[kind]: extra[0]} if extra else {}
        with tf.GradientTape() as tape:
            inputs = dense(hidden)
            tape.watch([inputs, *extra[:1]] if kind == "residual" else inputs)
            outputs = layer(inputs, training=True, **options)
        sources = {
            "dx": inputs,
            "dgamma": layer.gamma.value,
            "dbeta": layer.beta.value,
            "upstream": dense.kernel.value,
        }
        if kind == "residual":
            sources["dresidual"] = extra[0]
        return {
            "outputs": outputs,
            **tape.gradient(outputs, sources, output_gradients=dy),
        }

    runner = world.compile(step, graph=mode == "graph")
    for condition in conditions(dtype):
        joined = draw(kind, world.size, dtype, condition)
        with world.scope():
            dense.kernel.assign(joined.kernel)
            dense.bias.assign(joined.bias)
            layer.gamma.assign(joined.gamma)
            layer.beta.assign(joined.beta)
            layer.moving_mean.assign(np.zeros(CHANNELS))
            layer.moving_variance.assign(np.ones(CHANNELS))
        results = runner([joined.arguments(rank) for rank in range(world.size)])
        moving = [world.values(v) for v in (layer.moving_mean, layer.moving_variance)]
        yield (
            case_name(kind, mode, dtype, condition),
            [
                _report(joined, rank, result, mean, variance)
                for rank, result, mean, variance in zip(world.held, results, *moving, strict=True)
            ],
        )


def _report(
    joined: Joined,
    rank: int,
    result: dict[str, np.ndarray],
    moving_mean: np.ndarray,
    moving_variance: np.ndarray,
) -> dict[str, Any]:
    exact, rows = joined.exact, joined.shard(rank)
    nothing = exact.moments.count[0] == 0
    expected = {
        "outputs": exact.outputs[rows],
        "dx": exact.dx[rows],
        "dgamma": exact.dgamma[rows].sum(axis=(0, 1)),
        "dbeta": exact.dbeta[rows].sum(axis=(0, 1)),
        "upstream": np.einsum(
            "nsf,nsc->fc", joined.hidden[rows].astype(np.float64), exact.dx[rows]
        ),
        "moving_mean": np.zeros(CHANNELS) if nothing else exact.moments.mean,
        "moving_variance": np.ones(CHANNELS) if nothing else exact.moments.variance,
    }
    if joined.residual is not None:
        expected["dresidual"] = exact.dbeta[rows]
    ours = {**result, "moving_mean": moving_mean, "moving_variance": moving_variance}
    shares = {}
    for name in expected:
        if ours[name].shape != expected[name].shape:
            raise AssertionError(f"{name}: {ours[name].shape} is not {expected[name].shape}")
        difference = ours[name].astype(np.float64) - expected[name]
        shares[name] = [float(np.sum(difference**2)), float(np.sum(expected[name] ** 2))]
    return {
        "shares": shares,
        "roundings": {
            name: _roundings(ours[name], expected[name])
            for name in ("outputs", "dx")
            if ours[name].dtype.itemsize == 2
        },
        "dtypes": {name: tf.as_dtype(ours[name].dtype).name for name in expected},
        "moving": moving_mean.tobytes().hex() + moving_variance.tobytes().hex(),
    }


def _roundings(ours: np.ndarray, exact: np.ndarray) -> float:
    """The largest error of an element, in half units in the last place of its half-precision dtype.

    One rounding of the exact value is at most 1; the unit includes a small fraction of the typical
    element for the error of float32 arithmetic.
    """
    if not exact.size:
        return 0.0
    digits = {"float16": 11, "bfloat16": 8}[ours.dtype.name]
    _, exponent = np.frexp(exact)
    half_unit = np.ldexp(0.5, np.maximum(exponent, -13 if digits == 11 else -125) - digits)
    allowed = half_unit + 1e-6 * np.sqrt(np.mean(exact**2))
    return float(np.max(np.abs(ours.astype(np.float64) - exact) / allowed))
