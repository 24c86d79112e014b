"""Measurements of collectives; test_matrix_two_ranks.py tests them on ranks."""

import keras
import numpy as np
import pytest

from syncbn import telemetry
from syncbn.optimizer import DistributedOptimizer


def test_what_xla_compiles_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_watching", False)
    monkeypatch.setattr(telemetry, "_buffer", None)
    telemetry.watch()
    rows = np.ones((4, 3), "float32")
    noted = []
    for jit_compile in (False, True):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        optimizer = DistributedOptimizer(keras.optimizers.SGD(0.1))
        model.compile(optimizer, loss="mse", jit_compile=jit_compile)
        model.fit(rows, rows[:, :1], verbose=0)
        _, numbers = telemetry.collect()
        noted.append(list(numbers))
    assert noted == [["gradient_norm"], []]
