"""The distributed optimizer in a process that is alone, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import DistributedOptimizer, broadcast_variables, weigh_rows
from tests.syncbn.one_process import dense_model, train_alone


def test_alone_it_is_the_plain_optimizer() -> None:
    optimizer = DistributedOptimizer(keras.optimizers.Adam(0.05))
    assert isinstance(optimizer, keras.optimizers.Adam)
    np.testing.assert_array_equal(
        train_alone(optimizer, 3), train_alone(keras.optimizers.Adam(0.05), 3)
    )
    assert keras.optimizers.serialize(optimizer)["class_name"] == "Adam"


def test_alone_a_sum_is_divided_by_its_rows() -> None:
    variable = keras.Variable(1.0)
    optimizer = DistributedOptimizer(keras.optimizers.SGD(1.0))
    optimizer.apply_gradients([(tf.constant(6.0), variable)], rows=4)
    assert float(variable) == -0.5


def test_a_built_optimizer_keeps_its_state() -> None:
    optimizer = keras.optimizers.Adam(0.05)
    train_alone(optimizer, 2)
    before = [variable.numpy() for variable in optimizer.variables]
    for old, new in zip(before, DistributedOptimizer(optimizer).variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backward_passes_per_step": 0}, "backward_passes_per_step=0"),
        ({"compression": "int8"}, "compression='int8'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistributedOptimizer(keras.optimizers.SGD(), **arguments)


def test_what_cannot_be_distributed_is_refused() -> None:
    with pytest.raises(TypeError, match="Keras 3 optimizer"):
        DistributedOptimizer("adam")
    optimizer = DistributedOptimizer(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="already distributed"):
        DistributedOptimizer(optimizer)
    outside = keras.optimizers.LossScaleOptimizer(optimizer)
    with pytest.raises(ValueError, match="must stand inside"):
        outside.build([keras.Variable(1.0)])


def test_weigh_rows_needs_a_distributed_optimizer() -> None:
    model = dense_model(0)
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="DistributedOptimizer"):
        weigh_rows(model)


def test_broadcast_refuses_what_holds_no_variables() -> None:
    class TwoRanks:
        size = 2

    with pytest.raises(TypeError, match="variables must be"):
        broadcast_variables([3.0], communicator=TwoRanks())
