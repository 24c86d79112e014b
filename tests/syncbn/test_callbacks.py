"""The callbacks and their arguments in one process; on ranks: test_matrix_two_ranks.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf

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


class OwnStep(keras.Model):
    """Computes its loss without the compiled metrics, and has a metric of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.error = keras.metrics.MeanAbsoluteError(name="error")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.dense(inputs)

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        x, y = data
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = tf.reduce_mean((predicted - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.error.update_state(y, predicted)
        return {"loss": loss, "twice": 2 * loss}


def test_metrics_that_a_custom_step_does_not_update_keep_their_logs() -> None:
    x, y = np.ones((4, 2), np.float32), np.full((4, 1), 9.0, np.float32)
    model = OwnStep()
    model.compile(keras.optimizers.SGD(0.0), loss="mse")
    history = model.fit(x, y, verbose=0, epochs=2, callbacks=[callbacks.AverageMetrics()]).history
    assert set(history) == {"loss", "twice", "error"}
    assert history["loss"][1] > 0
    assert history["twice"] == pytest.approx([2 * value for value in history["loss"]])
    assert history["error"][1] ** 2 == pytest.approx(history["loss"][1])


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
