"""The distributed optimizer with threads as ranks, compared with one process with all rows.

test_matrix_two_ranks.py tests the same on real ranks of every backend.
"""

from contextlib import suppress
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import DistributedOptimizer
from tests.syncbn.one_process import dense_model, flat_weights, regression_data, train_alone
from tests.syncbn.threads import ThreadCommunicator, on_ranks
from tests.syncbn.worlds import mirrored

SGD = keras.optimizers.SGD


def distributed(communicator: ThreadCommunicator, optimizer: Any, **options: Any) -> Any:
    return DistributedOptimizer(optimizer, communicator=communicator, **options)


def shard(rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Five rows for the first rank, two for the second."""
    x, y = regression_data()
    return (x[:5], y[:5]) if rank == 0 else (x[5:], y[5:])


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("options", "plain", "scale"),
    [({}, 0.1, 1.0), ({"average": False}, 0.01, 7.0), ({"backward_passes_per_step": 2}, 0.1, 1.0)],
)
def test_uneven_ranks_train_as_one_process(
    options: dict[str, Any], plain: float, scale: float, graph: bool
) -> None:
    models = [dense_model(1), dense_model(1)]
    steps = 3

    def work(communicator: ThreadCommunicator) -> int:
        model, (x, y) = models[communicator.rank], shard(communicator.rank)
        optimizer = distributed(communicator, SGD(plain), **options)

        def step(x: tf.Tensor, y: tf.Tensor) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(model(x) - y))
            gradients = tape.gradient(loss, model.trainable_variables)
            pairs = zip(gradients, model.trainable_variables, strict=True)
            optimizer.apply_gradients(pairs, rows=tf.shape(x)[0])

        run = tf.function(step, reduce_retracing=True) if graph else step
        passes = options.get("backward_passes_per_step", 1)
        cuts = [slice(None)] if passes == 1 else [slice(0, 1), slice(1, None)]
        for _ in range(steps):
            for cut in cuts:
                run(tf.constant(x[cut]), tf.constant(y[cut]))
        return int(optimizer.iterations)

    assert on_ranks(2, work) == [steps, steps]
    np.testing.assert_array_equal(flat_weights(models[0]), flat_weights(models[1]))
    alone = train_alone(SGD(plain), steps, scale=scale)
    np.testing.assert_allclose(flat_weights(models[0]), alone, atol=1e-6)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("graph", [False, True])
def test_a_variable_is_updated_if_any_rank_has_its_gradient(passes: int, graph: bool) -> None:
    """Weight decay applies to it, but not to variables without gradient on all ranks."""

    def work(communicator: ThreadCommunicator) -> list[float]:
        one_sided, nobodys, shared = (keras.Variable(1.0) for _ in range(3))
        decayed = SGD(1.0, weight_decay=0.5)
        optimizer = distributed(communicator, decayed, backward_passes_per_step=passes)
        optimizer.build([one_sided, nobodys, shared])

        def step() -> None:
            mine = tf.constant(4.0) if communicator.rank == 0 else None
            optimizer.apply([mine, None, tf.constant(2.0)])

        run = tf.function(step) if graph else step
        for _ in range(passes):
            run()
        return [float(v) for v in (one_sided, nobodys, shared)]

    # The decay halves it; then the mean over ranks and passes.
    assert on_ranks(2, work) == [[0.5 - 2.0, 1.0, 0.5 - 2.0]] * 2


def test_variables_that_the_optimizer_is_built_with_need_no_naming() -> None:
    def work(communicator: ThreadCommunicator) -> list[float]:
        first, second = keras.Variable(0.0), keras.Variable(0.0)
        optimizer = distributed(communicator, SGD(1.0))
        returned = optimizer.apply_gradients([(tf.constant(2.0), first), (None, second)])
        assert returned is optimizer.iterations
        optimizer.apply([tf.constant(4.0 * communicator.rank), tf.constant(1.0)])
        return [float(first), float(second), float(optimizer.iterations)]

    assert on_ranks(2, work) == [[-4.0, -1.0, 2.0]] * 2


def test_sums_of_passes_are_those_of_the_variables_given() -> None:
    """Also if a step has them in another order, or only some of them."""

    def work(communicator: ThreadCommunicator) -> list[float]:
        first, second = keras.Variable(0.0), keras.Variable(0.0)
        optimizer = distributed(communicator, SGD(1.0), backward_passes_per_step=2)
        optimizer.build([first, second])
        for _ in range(2):
            optimizer.apply_gradients([(tf.constant(3.0), second), (tf.constant(1.0), first)])
        return [float(first), float(second)]

    assert on_ranks(2, work) == [[-1.0, -3.0]] * 2


def test_the_loss_is_weighted_inside_the_context_only() -> None:
    def work(communicator: ThreadCommunicator) -> float:
        weight = keras.Variable(0.0)
        optimizer = distributed(communicator, SGD(1.0))
        rows = 3 * communicator.rank + 1
        with optimizer.weighted(rows):
            loss = optimizer.scale_loss(tf.constant(2.0, tf.float64))
            assert (loss.dtype, float(loss)) == (tf.float64, 2.0 * rows)
            optimizer.apply([tf.cast(loss, tf.float32)], [weight])
        with suppress(KeyError), optimizer.weighted(rows):
            raise KeyError
        assert float(optimizer.scale_loss(tf.constant(2.0))) == 2.0
        # Now all ranks have the same weight.
        optimizer.apply([tf.constant(float(rows))], [weight])
        return float(weight)

    assert on_ranks(2, work) == [-2.0 - 2.5] * 2


@pytest.mark.parametrize("bad", [np.inf, np.nan, 1.0])
def test_a_step_is_finite_on_all_ranks_or_on_none(bad: float) -> None:
    """Loss scaling as the outer optimizer, as in `compile`: ranks must agree to skip a step."""

    def work(communicator: ThreadCommunicator) -> tuple[float, float]:
        inner = distributed(communicator, SGD(1.0))
        outer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
        weight, table = keras.Variable(0.0), keras.Variable(np.zeros((2, 1), "float32"))
        unreached = keras.Variable(1.0)
        outer.build([weight, table, unreached])
        value = tf.constant([[bad if communicator.rank == 1 else 1.0]])
        slices = tf.IndexedSlices(value, tf.constant([0]), tf.constant([2, 1]))
        outer.apply([tf.constant(8.0), slices, None], [weight, table, unreached])
        return float(weight), float(outer.dynamic_scale)

    expected = (-2.0, 4.0) if bad == 1.0 else (0.0, 2.0)
    assert on_ranks(2, work) == [expected] * 2


def test_inside_a_strategy_only_rows_have_an_effect() -> None:
    world = mirrored(2)
    with world.scope():
        weight, unreached = keras.Variable(0.0), keras.Variable(1.0)
        optimizer = DistributedOptimizer(SGD(1.0))
        optimizer.build([weight, unreached])

    def step(gradient: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        optimizer.apply([gradient, None], [weight, unreached], rows=rows)
        with optimizer.weighted(rows):
            return optimizer.scale_loss(tf.constant(3.0))

    run = world.compile(step, graph=True)
    losses = run([[np.float32(6.0), np.int32(1)], [np.float32(2.0), np.int32(3)]])
    assert world.values(weight) == [-2.0, -2.0], "the sum over replicas, divided by all rows"
    assert world.values(unreached) == [1.0, 1.0]
    assert [float(loss) for loss in losses] == [3.0, 3.0], "Keras weights it"


def test_a_graph_compiled_by_xla_is_an_error_with_the_remedy() -> None:
    weight = keras.Variable(0.0)
    optimizer = DistributedOptimizer(SGD(1.0))
    optimizer.build([weight])
    tf.function(lambda: optimizer.apply([tf.constant(1.0)]), jit_compile=True)()
    assert float(weight) == -1.0, "a single process does not average"
    step = tf.function(lambda: optimizer.apply([tf.constant(1.0)], rows=2), jit_compile=True)
    with pytest.raises(ValueError, match=r"compile\(\.\.\., jit_compile=False\)"):
        step()
