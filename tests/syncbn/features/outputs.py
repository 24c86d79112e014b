"""Options applied to the normalized values: adjustment and activation."""

import numpy as np
import tensorflow as tf

from tests.syncbn import oracle
from tests.syncbn.features.setting import (
    Batch,
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
