"""Inputs with any number of axes, channels on every axis, and shapes unknown while tracing."""

from collections.abc import Sequence

import tensorflow as tf

from tests.syncbn.features.setting import (
    CHANNELS,
    Check,
    Ledger,
    Report,
    exact_results,
    make_batch,
    make_layer,
    one_step,
    train_step,
)
from tests.syncbn.worlds import World


def axis_check(tail: Sequence[int], axis: int, batch_axis: int = 0) -> Check:
    def check(world: World) -> list[Report]:
        batch = make_batch(world, tail, batch_axis=batch_axis)
        layer = make_layer(world, batch.x.shape, axis=axis)
        return one_step(world, batch, layer, exact_results(layer, batch))

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
    ledger.step(batch, results, exact_results(layer, batch), -1)
    return ledger.reports
