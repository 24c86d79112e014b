"""What the layer can do beyond a plain step, on any world, in float64 against the oracle.

Each check runs on every rank of a world and returns, for each rank held here, its errors beside the
oracle of the joined batch (relative to the norm of the joined answer) and the bits that must be
equal on all ranks. `CHECKS` lists them; the tests and the rank programs run them all.
"""

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
    """The joined batch: each rank has its own rows, more for higher ranks."""

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
    """A built float64 layer with γ, β and moving statistics that are not the initial ones."""
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
    """A step of one layer; further per-sample arguments are passed under `names`, in order."""

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
        """Notes ‖ours − exact‖ / ‖norm‖, `norm` being `exact` unless given."""
        exact = np.asarray(exact, np.float64)
        if ours.shape != exact.shape:
            raise AssertionError(f"{name}: shape {ours.shape}, expected {exact.shape}")
        scale = float(np.linalg.norm(exact if norm is None else norm)) or 1.0
        error = float(np.linalg.norm(ours - exact)) / scale
        errors = self.reports[place]["errors"]
        # NaN must not hide behind a comparison.
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
        """Compares variables with exact values, and notes their bits."""
        for name, (variable, exact) in pairs.items():
            for place, value in enumerate(self.world.values(variable)):
                self.compare(name, place, value, exact)
                self.reports[place]["same"] += value.tobytes().hex()


def _one_step(
    world: World,
    batch: Batch,
    layer: Any,
    exact: oracle.Normalized,
    graph: bool = False,
    moving: tuple[Any, Any] | None = None,
    per_sample: dict[str, np.ndarray] | None = None,
) -> list[Report]:
    """Runs one step and compares everything; `moving` holds the exact batch mean and variance."""
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


def _exact(layer: Any, batch: Batch, **arguments: Any) -> oracle.Normalized:
    gamma, beta = np.array(layer.gamma.numpy()), np.array(layer.beta.numpy())
    return oracle.normalize(batch.x, batch.dy, gamma, beta, layer.axis, EPSILON, **arguments)


def _axis_check(tail: Sequence[int], axis: int, batch_axis: int = 0) -> Check:
    def check(world: World) -> list[Report]:
        batch = make_batch(world, tail, batch_axis=batch_axis)
        layer = make_layer(world, batch.x.shape, axis=axis)
        return _one_step(world, batch, layer, _exact(layer, batch))

    return check


def unknown_shapes(world: World) -> list[Report]:
    """Batch, height and width unknown while the graph is traced."""
    batch = make_batch(world, (4, 2, CHANNELS))
    layer = make_layer(world, (None, None, None, CHANNELS))
    step = train_step(layer)

    def hide(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        shape = [None, None, None, CHANNELS]
        return step(*[tf.compat.v1.placeholder_with_default(t, shape) for t in tensors])

    ledger = Ledger(world)
    runner = world.compile(hide, graph=True)
    results = runner([[batch.shard(r), batch.shard(r, batch.dy)] for r in range(world.size)])
    ledger.step(batch, results, _exact(layer, batch), -1)
    return ledger.reports


def renorm(world: World) -> list[Report]:
    """Three steps; r and d hit their limits in the first and move freely later."""
    clipping = {"rmax": 1.5, "rmin": 0.6, "dmax": 1.0}
    layer = make_layer(
        world, (None, CHANNELS), renorm=True, renorm_clipping=clipping, renorm_momentum=0.5
    )
    ledger = Ledger(world)
    runner = world.compile(train_step(layer), graph=True)
    mean, stddev = np.zeros(CHANNELS), np.ones(CHANNELS)
    tracked_mean, tracked_stddev = np.zeros(CHANNELS), np.ones(CHANNELS)
    for number in range(3):
        batch = make_batch(world, seed=number)
        now = oracle.moments(batch.x)
        r, d = oracle.renorm_correction(now, tracked_mean, tracked_stddev, EPSILON, clipping)
        results = runner([[batch.shard(k), batch.shard(k, batch.dy)] for k in range(world.size)])
        ledger.step(batch, results, _exact(layer, batch, r=r, d=d), -1)
        deviation = np.sqrt(now.variance + EPSILON)
        mean, stddev = oracle.move(mean, now.mean, 0.75), oracle.move(stddev, deviation, 0.75)
        tracked_mean = oracle.move(tracked_mean, now.mean, 0.5)
        tracked_stddev = oracle.move(tracked_stddev, deviation, 0.5)
    ledger.variables(
        moving_mean=(layer.moving_mean, mean),
        moving_stddev=(layer.moving_stddev, stddev),
        moving_variance=(layer.moving_variance, stddev**2 - EPSILON),
        renorm_mean=(layer.renorm_mean, tracked_mean),
        renorm_stddev=(layer.renorm_stddev, tracked_stddev),
    )
    return ledger.reports


def bessel_correction(world: World) -> list[Report]:
    """The moving variance takes n/(n − 1) of the count over all ranks."""
    batch = make_batch(world)
    layer = make_layer(world, batch.x.shape, bessel_correction=True)
    exact = _exact(layer, batch)
    n = exact.moments.count[0]
    unbiased = exact.moments.variance * n / (n - 1.0)
    return _one_step(world, batch, layer, exact, moving=(exact.moments.mean, unbiased))


def zero_debias(world: World) -> list[Report]:
    """The moving mean is the weighted average of the batches seen, with no zero in it."""
    layer = make_layer(world, (None, CHANNELS), zero_debias_moving_mean=True, momentum=0.99)
    ledger = Ledger(world)
    runner = world.compile(train_step(layer), graph=False)
    biased = np.zeros(CHANNELS)
    for number in range(1, 4):
        batch = make_batch(world, seed=number)
        runner([[batch.shard(k), batch.shard(k, batch.dy)] for k in range(world.size)])
        biased = oracle.move(biased, oracle.moments(batch.x).mean, 0.99)
        ledger.variables(moving_mean=(layer.moving_mean, biased / (1.0 - 0.99**number)))
    return ledger.reports


def _adjust(shape: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """One scale and one bias a sample, from its place in the shard."""
    place = tf.cast(tf.range(shape[0]), tf.float64)[:, None]
    return 1.0 + 0.1 * place, 0.05 * place


def adjustment(world: World) -> list[Report]:
    batch = make_batch(world)
    layer = make_layer(world, batch.x.shape, adjustment=_adjust)
    place = np.concatenate([np.arange(len(batch.shard(r))) for r in range(world.size)])[:, None]
    exact = _exact(layer, batch, adjustment=(1.0 + 0.1 * place, 0.05 * place))
    return _one_step(world, batch, layer, exact)


def activation(world: World) -> list[Report]:
    batch = make_batch(world)
    layer = make_layer(world, batch.x.shape, activation="relu")
    plain = _exact(layer, batch)
    open_gate = plain.outputs > 0
    gated = Batch(batch.x, batch.dy * open_gate, batch.cuts)
    exact = _exact(layer, gated)
    exact = oracle.Normalized(
        exact.outputs * open_gate, exact.dx, exact.dgamma, exact.dbeta, exact.moments
    )
    return _one_step(world, batch, layer, exact)


def _ghost(weighted: bool) -> Check:
    def check(world: World) -> list[Report]:
        """Blocks of two samples; the moving statistics are the average over all blocks."""
        batch = make_batch(world, (2, CHANNELS))
        layer = make_layer(world, batch.x.shape, virtual_batch_size=2, bessel_correction=True)
        generator = np.random.default_rng(3)
        weights = generator.choice([0.5, 1.0, 2.0], size=len(batch.x)) if weighted else None
        if weights is not None:
            weights[:2] = 0.0  # A block that counts nothing has no share in the average.
        blocks = [
            oracle.normalize(
                batch.x[i : i + 2],
                batch.dy[i : i + 2],
                layer.gamma.numpy(),
                layer.beta.numpy(),
                -1,
                EPSILON,
                None if weights is None else weights[i : i + 2, None, None],
            )
            for i in range(0, len(batch.x), 2)
        ]
        joined = oracle.Normalized(
            outputs=np.concatenate([block.outputs for block in blocks]),
            dx=np.concatenate([block.dx for block in blocks]),
            dgamma=np.concatenate([block.dgamma for block in blocks]),
            dbeta=np.concatenate([block.dbeta for block in blocks]),
            moments=oracle.moments(batch.x),
        )
        moments = [block.moments for block in blocks if block.moments.count[0] > 0]
        mean = np.mean([m.mean for m in moments], axis=0)
        count = np.mean([m.count for m in moments], axis=0)
        variance = np.mean([m.variance for m in moments], axis=0) * count / (count - 1.0)
        extra = {} if weights is None else {"batch_weights": weights}
        return _one_step(world, batch, layer, joined, moving=(mean, variance), per_sample=extra)

    return check


def _groups(size_of_group: Callable[[int], int]) -> Check:
    def check(world: World) -> list[Report]:
        """Each block of ranks has statistics of its own."""
        k = size_of_group(world.size)
        batch = make_batch(world)
        layer = make_layer(world, batch.x.shape, group_size=k)
        ledger = Ledger(world)
        runner = world.compile(train_step(layer), graph=True)
        arguments = [[batch.shard(r), batch.shard(r, batch.dy)] for r in range(world.size)]
        results = runner(arguments)
        values = zip(
            world.values(layer.moving_mean), world.values(layer.moving_variance), strict=True
        )
        for place, (rank, moving) in enumerate(zip(world.held, values, strict=True)):
            first = rank // k * k
            rows = slice(batch.cuts[first], batch.cuts[first + k])
            cuts = tuple(c - batch.cuts[first] for c in batch.cuts[first : first + k + 1])
            block = Batch(batch.x[rows], batch.dy[rows], cuts)
            exact = _exact(layer, block)
            ours = results[place]
            for name in ("outputs", "dx"):
                local = block.shard(rank - first, getattr(exact, name))
                ledger.compare(name, place, ours[name], local)
            ledger.compare("moving_mean", place, moving[0], 0.25 * exact.moments.mean)
            variance = oracle.move(np.ones(CHANNELS), exact.moments.variance, 0.75)
            ledger.compare("moving_variance", place, moving[1], variance)
        return ledger.reports

    return check


def group_of_one(world: World) -> list[Report]:
    return _groups(lambda size: 1)(world)


def group_of_all(world: World) -> list[Report]:
    return _groups(lambda size: size)(world)


def two_groups(world: World) -> list[Report]:
    """Half of the ranks each; worlds of odd size have one group."""
    return _groups(lambda size: size // 2 if size % 2 == 0 else size)(world)


def not_synchronized(world: World) -> list[Report]:
    """`synchronized=False` is the statistics of each rank alone."""
    batch = make_batch(world)
    layer = make_layer(world, batch.x.shape, synchronized=False)
    ledger = Ledger(world)
    runner = world.compile(train_step(layer), graph=True)
    results = runner([[batch.shard(r), batch.shard(r, batch.dy)] for r in range(world.size)])
    for place, rank in enumerate(world.held):
        alone = Batch(batch.shard(rank), batch.shard(rank, batch.dy), (0, len(batch.shard(rank))))
        exact = _exact(layer, alone)
        ledger.compare("outputs", place, results[place]["outputs"], exact.outputs)
        ledger.compare("dx", place, results[place]["dx"], exact.dx)
    return ledger.reports


def used_twice(world: World) -> list[Report]:
    """One layer on two different inputs in one step: two sets of statistics, two updates."""
    first, second = make_batch(world, seed=1), make_batch(world, rows=lambda r: 5 - r, seed=2)
    layer = make_layer(world, (None, CHANNELS))

    def step(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        x, dy, x2, dy2 = tensors
        with tf.GradientTape() as tape:
            tape.watch([x, x2])
            outputs = [layer(x, training=True), layer(x2, training=True)]
        sources = [x, x2, layer.gamma.value]
        dx, dx2, dgamma = tape.gradient(outputs, sources, output_gradients=[dy, dy2])
        return {"first": dx, "second": dx2, "dgamma": dgamma}

    ledger = Ledger(world)
    results = world.compile(step, graph=True)(
        [
            [b.shard(r, joined) for b in (first, second) for joined in (b.x, b.dy)]
            for r in range(world.size)
        ]
    )
    exact = [_exact(layer, batch) for batch in (first, second)]
    for place, rank in enumerate(world.held):
        ours = results[place]
        ledger.compare("first", place, ours["first"], first.shard(rank, exact[0].dx), exact[0].dx)
        ledger.compare(
            "second", place, ours["second"], second.shard(rank, exact[1].dx), exact[1].dx
        )
        dgamma = sum(
            b.shard(rank, e.dgamma).sum(0) for b, e in zip((first, second), exact, strict=True)
        )
        ledger.compare("dgamma", place, ours["dgamma"], dgamma)
    mean = oracle.move(0.25 * exact[0].moments.mean, exact[1].moments.mean, 0.75)
    ledger.variables(moving_mean=(layer.moving_mean, mean))
    return ledger.reports


def two_branches(world: World) -> list[Report]:
    """Two layers side by side that do not wait for each other, and a third behind both."""
    batch = make_batch(world)
    left = make_layer(world, (None, CHANNELS), name="left")
    right = make_layer(world, (None, CHANNELS), name="right")
    last = make_layer(world, (None, CHANNELS), name="last")

    def step(x: tf.Tensor, dy: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = last(left(x, training=True) * right(tf.square(x), training=True), training=True)
        return {"outputs": y, "dx": tape.gradient(y, x, output_gradients=dy)}

    ledger = Ledger(world)
    runner = world.compile(step, graph=True)
    results = runner([[batch.shard(r), batch.shard(r, batch.dy)] for r in range(world.size)])
    x, gamma, beta = batch.x, left.gamma.numpy(), left.beta.numpy()
    nothing = np.zeros_like(x)
    a = oracle.normalize(x, nothing, gamma, beta, -1, EPSILON).outputs
    b = oracle.normalize(x**2, nothing, gamma, beta, -1, EPSILON).outputs
    top = oracle.normalize(a * b, batch.dy, gamma, beta, -1, EPSILON)
    through_a = oracle.normalize(x, top.dx * b, gamma, beta, -1, EPSILON).dx
    through_b = oracle.normalize(x**2, top.dx * a, gamma, beta, -1, EPSILON).dx
    dx = through_a + 2.0 * x * through_b
    for place, rank in enumerate(world.held):
        ledger.compare(
            "outputs", place, results[place]["outputs"], batch.shard(rank, top.outputs), top.outputs
        )
        ledger.compare("dx", place, results[place]["dx"], batch.shard(rank, dx), dx)
    ledger.variables(
        moving_mean=(last.moving_mean, oracle.move(0.0, top.moments.mean, 0.75)),
        moving_variance=(last.moving_variance, oracle.move(1.0, top.moments.variance, 0.75)),
    )
    return ledger.reports


def accumulated_gradients(world: World) -> list[Report]:
    """Two micro-batches before the gradients are used: each has its own statistics."""
    batches = [make_batch(world, seed=4), make_batch(world, seed=5)]
    layer = make_layer(world, (None, CHANNELS))
    ledger = Ledger(world)
    runner = world.compile(train_step(layer), graph=True)
    total = [np.zeros(CHANNELS) for _ in world.held]
    for batch in batches:
        arguments = [[batch.shard(r), batch.shard(r, batch.dy)] for r in range(world.size)]
        for place, result in enumerate(runner(arguments)):
            total[place] = total[place] + result["dgamma"]
    exact = [_exact(layer, batch).dgamma for batch in batches]
    for place, rank in enumerate(world.held):
        local = sum(b.shard(rank, e).sum(axis=0) for b, e in zip(batches, exact, strict=True))
        ledger.compare("dgamma", place, total[place], local)
    return ledger.reports


def _masked(mask_of: Callable[[np.ndarray], np.ndarray], poison: float | None) -> Check:
    def check(world: World) -> list[Report]:
        """Masked positions have no share; whatever stands in them harms nobody."""
        batch = make_batch(world, (4, CHANNELS))
        mask = mask_of(np.random.default_rng(6).uniform(size=batch.x.shape[:2]))
        if poison is not None:
            batch.x[~mask] = poison
        layer = make_layer(world, batch.x.shape)
        exact = _exact(layer, batch, weights=mask[..., None])
        ledger = Ledger(world)
        runner = world.compile(train_step(layer, "mask"), graph=True)
        results = runner(
            [[batch.shard(r, v) for v in (batch.x, batch.dy, mask)] for r in range(world.size)]
        )
        axes = (0, 1)
        for place, (rank, ours) in enumerate(zip(world.held, results, strict=True)):
            seen = batch.shard(rank, mask)[..., None] | (poison is None)
            for name, joined in (("outputs", exact.outputs), ("dx", exact.dx)):
                expected = np.where(seen, batch.shard(rank, joined), 0.0)
                ledger.compare(name, place, np.where(seen, ours[name], 0.0), expected)
            if poison is not None:
                # Unseen rows still carry the upstream gradient of β, and none of γ's.
                unseen = np.where(seen, 0.0, ours["dx"])
                ledger.compare("dx of the masked", place, np.isfinite(unseen) - 1.0, 0.0 * unseen)
            else:
                local = batch.shard(rank, exact.dgamma).sum(axis=axes)
                ledger.compare("dgamma", place, ours["dgamma"], local)
        empty = not mask.any()
        ledger.variables(
            moving_mean=(layer.moving_mean, (not empty) * 0.25 * exact.moments.mean),
            moving_variance=(
                layer.moving_variance,
                np.ones(CHANNELS)
                if empty
                else oracle.move(np.ones(CHANNELS), exact.moments.variance, 0.75),
            ),
        )
        return ledger.reports

    return check


def count_of_one(world: World) -> list[Report]:
    """A single sample in the whole world: variance 0, outputs β, gradients 0, no error."""
    batch = make_batch(world, rows=lambda rank: int(rank == 0))
    layer = make_layer(world, (None, CHANNELS), bessel_correction=True)
    exact = _exact(layer, batch)
    return _one_step(world, batch, layer, exact, graph=True)


def one_row_each(world: World) -> list[Report]:
    """Too few values on every rank, enough in the world."""
    batch = make_batch(world, rows=lambda rank: 1)
    layer = make_layer(world, (None, CHANNELS))
    return _one_step(world, batch, layer, _exact(layer, batch), graph=True)


CHECKS: dict[str, Check] = {
    "rank 2": _axis_check((CHANNELS,), -1),
    "rank 3, channels first": _axis_check((CHANNELS, 4), 1),
    "rank 3, channels before the batch": _axis_check((CHANNELS, 4), 0, batch_axis=1),
    "rank 4, channels last": _axis_check((3, 2, CHANNELS), -1),
    "rank 4, channels first": _axis_check((CHANNELS, 3, 2), 1),
    "rank 4, channels in the middle": _axis_check((3, CHANNELS, 2), 2),
    "rank 5, channels last": _axis_check((2, 3, 2, CHANNELS), 4),
    "rank 5, channels first": _axis_check((CHANNELS, 2, 3, 2), -4),
    "unknown shapes": unknown_shapes,
    "renorm": renorm,
    "bessel correction": bessel_correction,
    "zero debias": zero_debias,
    "adjustment": adjustment,
    "activation": activation,
    "ghost batches": _ghost(weighted=False),
    "weighted ghost batches": _ghost(weighted=True),
    "group of one": group_of_one,
    "group of all": group_of_all,
    "two groups": two_groups,
    "not synchronized": not_synchronized,
    "used twice": used_twice,
    "two branches": two_branches,
    "accumulated gradients": accumulated_gradients,
    "mask": _masked(lambda u: u > 0.4, None),
    "NaN behind the mask": _masked(lambda u: u > 0.4, np.nan),
    "infinity behind the mask": _masked(lambda u: u > 0.4, np.inf),
    "everything masked": _masked(lambda u: u > 2.0, None),
    "NaN behind a full mask": _masked(lambda u: u > 2.0, np.nan),
    "count of one": count_of_one,
    "one row each": one_row_each,
}
# Those whose ranks may end with different moving statistics.
SEPARATE = {"group of one", "two groups", "not synchronized"}


def run(world: World) -> dict[str, list[Report]]:
    """Every check on this world; for each the reports of the ranks held here."""
    return {name: check(world) for name, check in CHECKS.items()}
