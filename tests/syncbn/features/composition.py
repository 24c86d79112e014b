"""Several uses: a layer called twice, parallel branches, accumulated gradients."""

import numpy as np
import tensorflow as tf

from tests.syncbn import oracle
from tests.syncbn.features.setting import (
    CHANNELS,
    EPSILON,
    Ledger,
    Report,
    exact_results,
    make_batch,
    make_layer,
    train_step,
)
from tests.syncbn.worlds import World


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
    exact = [exact_results(layer, batch) for batch in (first, second)]
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
    """Two parallel layers, followed by a third."""
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
    """Two micro-batches before the update: each has its own statistics."""
    batches = [make_batch(world, seed=4), make_batch(world, seed=5)]
    layer = make_layer(world, (None, CHANNELS))
    ledger = Ledger(world)
    runner = world.compile(train_step(layer), graph=True)
    total = [np.zeros(CHANNELS) for _ in world.held]
    for batch in batches:
        arguments = [[batch.shard(r), batch.shard(r, batch.dy)] for r in range(world.size)]
        for place, result in enumerate(runner(arguments)):
            total[place] = total[place] + result["dgamma"]
    exact = [exact_results(layer, batch).dgamma for batch in batches]
    for place, rank in enumerate(world.held):
        local = sum(b.shard(rank, e).sum(axis=0) for b, e in zip(batches, exact, strict=True))
        ledger.compare("dgamma", place, total[place], local)
    return ledger.reports
