"""Programs that train different models on each rank: the job must end with an error.

`CAUGHT` do not communicate while they train, so one job can run them all. Each of `ENDING` ends its
job: `python -m tests.syncbn.equal_models.mistakes BACKEND NAME`.
"""

import sys
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import syncbn
from tests.syncbn.equal_models import models
from tests.syncbn.equal_models.models import ROWS, rows
from tests.syncbn.equal_models.styles import compiled, fit, sgd

Mistake = Callable[[int], Any]


def only_init(rank: int) -> None:
    x, y = rows(rank)
    compiled(models.without_norm(), sgd(), jit_compile=False).fit(x, y, batch_size=ROWS, verbose=0)


def no_distributed_optimizer(rank: int) -> None:
    fit(compiled(models.without_norm(), sgd(), jit_compile=False), rank)


def run_eagerly(rank: int) -> None:
    fit(compiled(models.without_norm(), sgd(), run_eagerly=True), rank)


def compiled_anew_without(rank: int) -> None:
    model = fit(compiled(models.without_norm()), rank)
    fit(compiled(model, sgd(), jit_compile=False), rank)


def plain_loop(rank: int) -> None:
    model = models.built()
    syncbn.broadcast_variables(model)
    optimizer = keras.optimizers.LossScaleOptimizer(sgd())

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(tf.reduce_mean(tf.square(model(x) - y)))
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    for _ in range(5):
        step(*map(tf.constant, rows(rank)))


CAUGHT: tuple[Mistake, ...] = (
    only_init,
    no_distributed_optimizer,
    run_eagerly,
    compiled_anew_without,
    plain_loop,
)


def plain_optimizer_with_the_layer(rank: int) -> None:
    fit(compiled(models.unbuilt(), sgd()), rank)


def unequal_starts(rank: int) -> None:
    x, y = rows(rank)
    compiled(models.built()).fit(x, y, batch_size=ROWS, verbose=0)


def learning_rate_of_one_rank(rank: int) -> None:
    class Set(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1 and rank == 1:
                self.model.optimizer.learning_rate = 0.001

    fit(compiled(models.unbuilt()), rank, Set(), epochs=4)


def compiled_by_xla(rank: int) -> None:
    """The step cannot compare anything, so the program fails at exit."""
    model = compiled(models.without_norm(), sgd(), jit_compile=True)
    x, y = rows(rank)
    model.fit(x, y, batch_size=ROWS, verbose=0)
    print("trained", flush=True)


def weights_assigned_by_hand(rank: int) -> None:
    """No Keras optimizer and no averaging: the layers are compared at exit."""
    model = models.built()
    syncbn.broadcast_variables(model)
    x, y = map(tf.constant, rows(rank))
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        weights = model.trainable_variables
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(0.1 * gradient)
    print("trained", flush=True)


ENDING: dict[str, tuple[Mistake, str]] = {
    "plain_optimizer_with_the_layer": (plain_optimizer_with_the_layer, "DistributedOptimizer"),
    "unequal_starts": (unequal_starts, "BroadcastVariables"),
    "learning_rate_of_one_rank": (learning_rate_of_one_rank, "were equal before"),
    "compiled_by_xla": (compiled_by_xla, "DistributedOptimizer"),
    "weights_assigned_by_hand": (weights_assigned_by_hand, "DistributedOptimizer"),
}

if __name__ == "__main__":
    own_rank = syncbn.init(sys.argv[1]).rank
    keras.utils.set_random_seed(1000 + own_rank)
    ENDING[sys.argv[2]][0](own_rank)
