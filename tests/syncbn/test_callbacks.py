"""The callbacks and their arguments in one process; on ranks: test_matrix_two_ranks.py."""

import keras
import numpy as np
import pytest

from syncbn import callbacks, weigh_rows
from syncbn.errors import NonFiniteError
from syncbn.optimizer import DistributedOptimizer


def test_the_alarm_does_nothing_in_one_process() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    callbacks.check_divergence(model, 1, callbacks.DivergenceAlarm().communicator)


def test_warm_up_needs_a_number_to_scale() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model.compile(keras.optimizers.SGD(schedule), loss="mse")
    with pytest.raises(ValueError, match="a number for learning_rate"):
        model.fit(
            np.zeros((2, 2)),
            np.zeros((2, 1)),
            verbose=0,
            callbacks=[callbacks.WarmUpLearningRate()],
        )


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="epochs=-1"):
        callbacks.WarmUpLearningRate(epochs=-1)
    with pytest.raises(ValueError, match="every=0"):
        callbacks.DivergenceAlarm(every=0)
    with pytest.raises(ValueError, match="on_nan='ignore'"):
        callbacks.NonFiniteGuard("ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="most_skips=0"):
        callbacks.NonFiniteGuard("skip", most_skips=0)


def _model(optimizer: keras.optimizers.Optimizer, **options: object) -> keras.Model:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="out")])
    model.compile(optimizer, loss="mse", **options)
    return model


@pytest.mark.parametrize("eager", [False, True])
def test_the_guard_restores_optimizer_and_model(eager: bool) -> None:
    x, y = np.ones((8, 2), np.float32), np.zeros((8, 1), np.float32)
    x[5] = np.inf
    model = _model(keras.optimizers.SGD(0.1), run_eagerly=eager)
    guard = callbacks.NonFiniteGuard("skip")
    model.fit(x, y, batch_size=2, shuffle=False, verbose=0, callbacks=[guard])
    assert (guard.skipped, int(model.optimizer.iterations)) == (1, 3)
    assert np.isfinite(model.get_metrics_result()["loss"])
    model.fit(x, y, batch_size=2, shuffle=False, verbose=0)  # without the guard
    assert not np.isfinite(model.get_weights()[0]).any()
    with pytest.raises(NonFiniteError, match=r"step 1 is not finite: the variable .*out/kernel"):
        model.fit(x, y, batch_size=2, verbose=0, callbacks=[callbacks.NonFiniteGuard()])
    assert "train_step" not in vars(model)


def test_too_many_skips_or_overflows_end_training() -> None:
    bad = np.full((160, 2), np.nan, np.float32), np.zeros((160, 1), np.float32)
    options = {"batch_size": 4, "verbose": 0}
    guard = callbacks.NonFiniteGuard("skip", most_skips=3)
    model = weigh_rows(_model(DistributedOptimizer(keras.optimizers.SGD())))
    with pytest.raises(NonFiniteError, match=r"step 3.*rank 0 holds NaN.*3 updates in a row"):
        model.fit(*bad, callbacks=[guard], **options)
    assert model.train_step.__name__ == "weighted_train_step", "the guard did not restore it"
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=8.0)
    with pytest.raises(NonFiniteError, match=r"step 30.*every loss scale from 8 down to"):
        _model(scaled).fit(*bad, callbacks=[callbacks.NonFiniteGuard()], **options)


def test_loss_or_gradient_is_named_if_all_layers_are_finite() -> None:
    x, y = np.ones((4, 2), np.float32), np.zeros((4, 1), np.float32)
    for loss, cause in (
        (lambda t, p: keras.ops.sqrt(p), "the gradient of .*out/bias is not finite"),
        (lambda t, p: keras.ops.log(p), "the loss is not finite on rank 0"),
    ):
        model = _model(keras.optimizers.SGD())
        model.get_layer("out").kernel.assign(np.zeros((2, 1)))
        model.compile(keras.optimizers.SGD(), loss=loss)
        with pytest.raises(NonFiniteError, match=cause):
            model.fit(x, y, verbose=0, callbacks=[callbacks.NonFiniteGuard()])
