"""All ways to average gradients over ranks, on uneven rows."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from syncbn import DistributedGradientTape, DistributedOptimizer, broadcast_variables, weigh_rows
from syncbn.communicators import Communicator
from tests.syncbn.one_process import dense_model, flat_weights, regression_data

ROWS_OF_THE_FIRST = 5


def run(communicator: Communicator) -> dict[str, Any]:
    rank = communicator.rank
    x, y = (
        part[:ROWS_OF_THE_FIRST] if rank == 0 else part[ROWS_OF_THE_FIRST:]
        for part in regression_data()
    )
    # Different seeds: the broadcast makes the ranks start equal.
    model = dense_model(rank)
    broadcast_variables(model, root_rank=1)
    report = {"broadcast": flat_weights(model)}
    report |= _by_keras(x, y) | _by_loops(x, y) | _in_two_passes(x, y, rank)
    report["tape_of_rows"] = _by_tape(x, y)
    answers = {name: weights.tolist() for name, weights in report.items()}
    answers |= _overflow(x, y, rank) | _sparse(rank) | _of_one_variable(rank)
    return answers | _at_the_edges(rank)


def _by_keras(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """`fit`, weighted uneven rows, clipped after averaging; and `train_on_batch`."""
    fitted = dense_model(1)
    fitted.compile(DistributedOptimizer(keras.optimizers.Adam(0.05, global_clipnorm=0.5)), "mse")
    weigh_rows(fitted)
    fitted.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0)
    by_batch = dense_model(1)
    by_batch.compile(DistributedOptimizer(keras.optimizers.SGD(0.1)), loss="mse")
    weigh_rows(by_batch)
    for _ in range(3):
        by_batch.train_on_batch(x, y)
    return {"fit": flat_weights(fitted), "train_on_batch": flat_weights(by_batch)}


def _by_loops(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    sgd = keras.optimizers.SGD
    scaled = keras.optimizers.LossScaleOptimizer(sgd(0.1), initial_scale=64)
    report = {
        "eager": _loop(DistributedOptimizer(sgd(0.1)), 3, x, y, graph=False),
        "loss_scale": _loop(DistributedOptimizer(scaled), 3, x, y),
        "sum": _loop(DistributedOptimizer(sgd(0.01), average=False), 3, x, y),
    }
    for kind in ("float16", "bfloat16"):
        report[kind] = _loop(DistributedOptimizer(sgd(0.1), compression=kind), 3, x, y)
    return report


def _loop(optimizer: Any, steps: int, x: np.ndarray, y: np.ndarray, graph: bool = True) -> Any:
    """The weights after `steps` steps of a custom loop."""
    model = dense_model(1)

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(tf.reduce_sum(tf.square(model(x) - y)))
        gradients = tape.gradient(loss, model.trainable_variables)
        pairs = zip(gradients, model.trainable_variables, strict=True)
        optimizer.apply_gradients(pairs, rows=len(x))

    run = tf.function(step) if graph else step
    for _ in range(steps):
        run(x, y)
    return flat_weights(model)


def _overflow(x: np.ndarray, y: np.ndarray, rank: int) -> dict[str, Any]:
    """An infinite gradient on one rank: both skip the step and halve the scale."""
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=64)
    bad = x * np.float32(np.inf if rank == 1 else 1)
    weights = _loop(DistributedOptimizer(optimizer), 1, bad, y)
    return {"skipped": weights.tolist(), "scale": float(optimizer.dynamic_scale)}


def _in_two_passes(x: np.ndarray, y: np.ndarray, rank: int) -> dict[str, np.ndarray]:
    """Two passes per step: rows 0-1, then 2-4 on the first rank, row 5, then 6 on the second."""
    model = dense_model(1)
    optimizer = DistributedOptimizer(keras.optimizers.Adam(0.05), backward_passes_per_step=2)

    @tf.function(reduce_retracing=True)
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(x) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        pairs = zip(gradients, model.trainable_variables, strict=True)
        optimizer.apply_gradients(pairs, rows=tf.shape(x)[0])

    cut = 2 if rank == 0 else 1
    for _ in range(3):
        step(x[:cut], y[:cut])
        step(x[cut:], y[cut:])
    assert int(optimizer.iterations) == 3
    return {"passes": flat_weights(model)}


def _sparse(rank: int) -> dict[str, Any]:
    """Sparse gradients, a variable with a gradient on one rank only, and one without any.

    Weight decay must not change the last one.
    """
    table = keras.Variable(np.arange(12, dtype="float32").reshape(6, 2))
    one_sided = keras.Variable([1.0, 1.0])
    untouched = keras.Variable([5.0])
    held: Sequence[Any] = [table, one_sided, untouched]
    optimizer = DistributedOptimizer(keras.optimizers.SGD(1.0, weight_decay=0.5))

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            rows = tf.gather(table.value, [0, 1] if rank == 0 else [1, 5])
            loss = tf.reduce_sum(rows)
            if rank == 0:
                loss += tf.reduce_sum(one_sided.value * 4.0)
        gradients = tape.gradient(loss, [v.value for v in held])
        assert isinstance(gradients[0], tf.IndexedSlices)
        optimizer.apply_gradients(zip(gradients, held, strict=True))

    step()
    return {"sparse": [v.numpy().tolist() for v in held]}


def _by_tape(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Three steps with the mean over all rows; the loss of each rank is a sum over its rows."""
    model, optimizer = dense_model(1), keras.optimizers.SGD(0.1)
    for _ in range(3):
        with DistributedGradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(x) - y))
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(loss, weights, rows=len(x)), weights)
    return flat_weights(model)


def _at_the_edges(rank: int) -> dict[str, Any]:
    """Special cases of one rank, one pass or one dtype."""

    def sgd(**options: Any) -> Any:
        return DistributedOptimizer(keras.optimizers.SGD(1.0, weight_decay=0.5), **options)

    of_no_rows = keras.Variable(0.0)
    gradient = tf.constant(6.0 if rank == 0 else np.nan)  # the mean of an empty batch is NaN
    sgd().apply_gradients([(gradient, of_no_rows)], rows=2 * (1 - rank))

    # The sum of both ranks exceeds the range of float16, their average does not.
    in_half = keras.Variable(0.0)
    sgd(compression="float16").apply_gradients([(tf.constant(40000.0), in_half)], rows=1000)

    # Has a gradient in the first of two passes only; weight decay still applies.
    early = keras.Variable(1.0)
    late = keras.Variable(1.0)
    optimizer = sgd(backward_passes_per_step=2)
    optimizer.apply_gradients([(tf.constant(1.0), early), (None, late)])
    optimizer.apply_gradients([(None, early), (tf.constant(1.0), late)])

    model = dense_model(1)
    model.compile(sgd(), loss="mse")
    weigh_rows(model).train_on_batch(np.ones((2, 4)), np.ones((2, 1)))
    try:
        gradients = [tf.zeros(v.shape) for v in model.trainable_variables]
        model.optimizer.apply(gradients, model.trainable_variables)
        told = ""
    except ValueError as error:
        told = str(error)
    return {
        "of no rows": float(of_no_rows),
        "in half": float(in_half),
        "by passes": [float(early), float(late)],
        "rows of a later step": told,
    }


def _of_one_variable(rank: int) -> dict[str, Any]:
    """The tape; and the error of two ranks that broadcast different lists."""
    variable = keras.Variable(2.0)
    with DistributedGradientTape() as tape:
        loss = variable * (rank + 1.0)
    report: dict[str, Any] = {"tape": float(tape.gradient(loss, variable))}
    try:
        broadcast_variables([variable] * (1 + rank))
    except Exception as error:
        report["mismatch"] = type(error).__name__
    return report
