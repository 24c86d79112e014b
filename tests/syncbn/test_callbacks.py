"""The callbacks alone and their arguments; on ranks they stand in test_matrix_two_ranks.py."""

import keras
import numpy as np
import pytest

from syncbn import callbacks


def test_the_alarm_is_silent_alone() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    callbacks.check_divergence(model, 1, callbacks.DivergenceAlarm().ranks)


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
