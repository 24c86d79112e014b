"""Programs with a training loop of their own."""

from typing import Any

import tensorflow as tf

import syncbn
from syncbn import DistributedGradientTape, DistributedOptimizer, broadcast_variables
from tests.syncbn.equal_models import models
from tests.syncbn.equal_models.models import rows
from tests.syncbn.equal_models.styles import sgd, variant


def _loop(rank: int, graph: bool, by_tape: bool, by_hand: bool = False) -> list[Any]:
    model = models.built()
    broadcast_variables(model)
    optimizer = sgd() if by_tape or by_hand else DistributedOptimizer(sgd())
    communicator = syncbn.communicator()

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        weights = model.trainable_variables
        with DistributedGradientTape() if by_tape else tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        gradients = tape.gradient(loss, weights)
        if by_hand:
            gradients = communicator.all_reduce_many(gradients, "by_hand")
        optimizer.apply_gradients(zip(gradients, weights, strict=True))

    run = tf.function(step) if graph else step
    for _ in range(5):
        run(*map(tf.constant, rows(rank)))
    return [*model.weights, *optimizer.variables]


@variant
def loop_in_graphs(rank: int) -> list[Any]:
    return _loop(rank, graph=True, by_tape=False)


@variant
def loop_eagerly(rank: int) -> list[Any]:
    return _loop(rank, graph=False, by_tape=False)


@variant
def loop_by_tape(rank: int) -> list[Any]:
    return _loop(rank, graph=True, by_tape=True)


@variant
def loop_averaged_by_hand(rank: int) -> list[Any]:
    return _loop(rank, graph=True, by_tape=False, by_hand=True)
