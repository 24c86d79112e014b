"""Options applied to the normalized values: adjustment, residual and activation."""

import numpy as np
import tensorflow as tf

from tests.syncbn import oracle
from tests.syncbn.features.setting import (
    Batch,
    Check,
    Ledger,
    Report,
    exact_results,
    make_batch,
    make_layer,
    one_step,
)
from tests.syncbn.worlds import World


def _adjust(shape: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """One scale and one bias per sample, depending on its index in the shard."""
    place = tf.cast(tf.range(shape[0]), tf.float64)[:, None]
    return 1.0 + 0.1 * place, 0.05 * place


def adjustment(world: World) -> list[Report]:
    batch = make_batch(world)
    layer = make_layer(world, batch.x.shape, adjustment=_adjust)
    place = np.concatenate([np.arange(len(batch.shard(r))) for r in range(world.size)])[:, None]
    exact = exact_results(layer, batch, adjustment=(1.0 + 0.1 * place, 0.05 * place))
    return one_step(world, batch, layer, exact)


def residual(shape: tuple[int, ...], axis: int, activation: str | None) -> Check:
    """A residual, also where shards differ: its gradient is dy behind the activation."""

    def check(world: World) -> list[Report]:
        batch = make_batch(world, shape)
        layer = make_layer(world, batch.x.shape, axis=axis, activation=activation)
        added = np.random.default_rng(11).normal(size=batch.x.shape)
        plain = exact_results(layer, batch)
        total = plain.outputs + added
        if activation is None:
            outputs, dy = total, batch.dy
        else:
            outputs, dy = np.maximum(total, 0.0), batch.dy * (total > 0)
        exact = exact_results(layer, Batch(batch.x, dy, batch.cuts))
        exact = oracle.Normalized(outputs, exact.dx, exact.dgamma, exact.dbeta, exact.moments)

        def step(x: tf.Tensor, dy: tf.Tensor, added: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch([x, added])
                y = layer(x, residual=added, training=True)
            names = ("dx", "dgamma", "dbeta", "dresidual")
            sources = [x, layer.gamma.value, layer.beta.value, added]
            gradients = tape.gradient(y, sources, output_gradients=dy)
            return {"outputs": y} | dict(zip(names, gradients, strict=True))

        ledger = Ledger(world)
        results = world.compile(step, graph=True)(
            [
                [batch.shard(r, part) for part in (batch.x, batch.dy, added)]
                for r in range(world.size)
            ]
        )
        ledger.step(batch, results, exact, layer.axis)
        for place, rank in enumerate(world.held):
            ledger.compare(
                "dresidual", place, results[place]["dresidual"], batch.shard(rank, dy), dy
            )
        mean = oracle.move(0.0, exact.moments.mean, layer.momentum)
        ledger.variables(moving_mean=(layer.moving_mean, mean))
        return ledger.reports

    return check


def activation(world: World) -> list[Report]:
    batch = make_batch(world)
    layer = make_layer(world, batch.x.shape, activation="relu")
    plain = exact_results(layer, batch)
    open_gate = plain.outputs > 0
    gated = Batch(batch.x, batch.dy * open_gate, batch.cuts)
    exact = exact_results(layer, gated)
    exact = oracle.Normalized(
        exact.outputs * open_gate, exact.dx, exact.dgamma, exact.dbeta, exact.moments
    )
    return one_step(world, batch, layer, exact)
