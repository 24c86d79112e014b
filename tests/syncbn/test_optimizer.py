"""The distributed optimizer in a single process, and invalid arguments."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import DistributedOptimizer, broadcast_variables, load_model, weigh_rows
from tests.syncbn.one_process import dense_model, regression_data, train_alone


def test_alone_it_is_the_plain_optimizer() -> None:
    optimizer = DistributedOptimizer(keras.optimizers.Adam(0.05))
    assert isinstance(optimizer, keras.optimizers.Adam)
    np.testing.assert_array_equal(
        train_alone(optimizer, 3), train_alone(keras.optimizers.Adam(0.05), 3)
    )


def test_optimizers_of_one_kind_are_of_one_class() -> None:
    first, second = (DistributedOptimizer(keras.optimizers.SGD(rate)) for rate in (0.1, 0.2))
    assert type(first) is type(second)
    assert type(first) is not type(DistributedOptimizer(keras.optimizers.Adam()))


def test_a_saved_model_keeps_the_distribution(tmp_path: Path) -> None:
    """Also without `init`, and with options, schedules and loss scaling."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    inner = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedule, momentum=0.9))
    optimizer = DistributedOptimizer(
        inner, backward_passes_per_step=2, compression="bfloat16", average=False
    )
    model = weigh_rows(_compiled(optimizer))
    x, y = regression_data()
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)
    assert loaded.optimizer.get_config() == optimizer.get_config()
    for old, new in zip(optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, new)
    loaded.fit(x, y, verbose=0)  # rows are weighted again
    model.save(tmp_path / "model.h5")  # Keras' older format
    old_format = keras.models.load_model(tmp_path / "model.h5")
    assert old_format.optimizer.get_config() == optimizer.get_config()


def test_load_model_distributes_the_optimizer_of_others(tmp_path: Path) -> None:
    _compiled(keras.optimizers.Adam(0.05)).save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras", backward_passes_per_step=3)
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)
    assert loaded.optimizer.get_config()["backward_passes_per_step"] == 3
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "plain.keras")
    assert not load_model(tmp_path / "plain.keras").compiled


def test_a_file_can_be_loaded_before_any_optimizer_is_distributed(tmp_path: Path) -> None:
    _compiled(DistributedOptimizer(keras.optimizers.Adam(0.05))).save(tmp_path / "model.keras")
    load = "print(syncbn.optimizer.is_distributed(keras.saving.load_model(sys.argv[1]).optimizer))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, keras, syncbn; {load}", str(tmp_path / "model.keras")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr


def test_a_gradient_too_few_is_an_error() -> None:
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.1), backward_passes_per_step=2)
    variables = [keras.Variable(0.0), keras.Variable(0.0)]
    optimizer.build(variables)
    with pytest.raises(ValueError, match="zip"):
        optimizer.apply([tf.constant(1.0)], variables)


def test_a_variable_of_tensorflow_without_gradient_keeps_its_value() -> None:
    """With weight decay, which Keras applies to every variable that has a gradient."""
    optimizer = DistributedOptimizer(
        keras.optimizers.SGD(0.5, weight_decay=0.1), backward_passes_per_step=2
    )
    variables = [tf.Variable(1.0), tf.Variable(1.0)]
    optimizer.build(variables)
    for _ in range(2):
        optimizer.apply([tf.constant(1.0), None], variables)
    assert float(variables[0]) < 1.0
    assert float(variables[1]) == 1.0


def _compiled(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    model = dense_model(0)
    model.compile(optimizer, loss=keras.losses.MeanSquaredError())
    return model


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


def test_invalid_optimizers_are_rejected() -> None:
    with pytest.raises(TypeError, match="Keras 3 optimizer"):
        DistributedOptimizer(0.1)
    with pytest.raises(ValueError, match="adamant"):
        DistributedOptimizer("adamant")
    assert isinstance(DistributedOptimizer("adam"), keras.optimizers.Adam)
    optimizer = DistributedOptimizer(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="already distributed"):
        DistributedOptimizer(optimizer)


def test_weigh_rows_needs_a_distributed_optimizer() -> None:
    model = dense_model(0)
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="DistributedOptimizer"):
        weigh_rows(model)


class TwoRanks:
    size = 2


def test_broadcast_rejects_an_unbuilt_model() -> None:
    model = keras.Sequential([keras.layers.Dense(1, name="first")], name="later")
    with pytest.raises(ValueError, match=r"'later' is not built.*BroadcastVariables\(\)"):
        broadcast_variables(model, communicator=TwoRanks())


def test_broadcast_rejects_objects_without_variables() -> None:
    with pytest.raises(TypeError, match="variables must be"):
        broadcast_variables([3.0], communicator=TwoRanks())
