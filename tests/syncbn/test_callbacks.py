"""The callbacks in a real two-rank `fit`, against one process that sees all rows."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from syncbn import callbacks
from tests.processes import Launcher

PROGRAM = """
import json, sys
import keras, numpy as np
import syncbn

ranks = syncbn.init(sys.argv[1])
generator = np.random.default_rng(3)
x = generator.normal(size=(10, 4)).astype("float32")
y = (x.sum(axis=1, keepdims=True) > 0).astype("float32")
part = slice(0, 7) if ranks.rank == 0 else slice(7, 10)
keras.utils.set_random_seed(ranks.rank)  # unequal starts, made equal by BroadcastVariables
inputs = keras.Input((4,))
hidden = syncbn.SyncBatchNormalization(name="norm")(keras.layers.Dense(3, name="hidden")(inputs))
model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid", name="out")(hidden))
model.compile(syncbn.DistributedOptimizer(keras.optimizers.SGD(0.1)), loss="binary_crossentropy",
              metrics=["accuracy", keras.metrics.AUC(name="auc")], jit_compile=True)
syncbn.weigh_rows(model)

rates, epochs = [], []
class Watch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        rates.append(float(self.model.optimizer.learning_rate))
    def on_epoch_end(self, epoch, logs=None):
        epochs.append({k: float(v) for k, v in logs.items()})

history = model.fit(
    x[part], y[part], validation_data=(x[part], y[part]), batch_size=7, epochs=3, shuffle=False,
    verbose=0,
    callbacks=[syncbn.callbacks.BroadcastVariables(), syncbn.callbacks.AverageMetrics(),
               syncbn.callbacks.WarmUpLearningRate(epochs=2), syncbn.callbacks.DivergenceAlarm(1),
               Watch()],
)
report = {"epochs": epochs, "rates": rates, "history": history.history["val_auc"],
          "jit": bool(model.jit_compile)}
model.evaluate(x[part], y[part], verbose=0, callbacks=[syncbn.callbacks.AverageMetrics()])
report["evaluate"] = {k: float(v) for k, v in model.get_metrics_result().items()}
report["weights"] = [w.ravel().tolist() for w in model.get_weights()]

class Disturb(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if ranks.rank == 1 and int(self.model.optimizer.iterations) == 4:
            layer = self.model.get_layer("norm")
            layer.moving_variance.assign(layer.moving_variance + 1e-6)

try:
    model.fit(x[part], y[part], batch_size=7, epochs=5, verbose=0, shuffle=False,
              callbacks=[Disturb(), syncbn.callbacks.DivergenceAlarm(1)])
except syncbn.errors.DivergenceError as error:
    report["alarm"] = str(error)
    report["stopped_at"] = int(model.optimizer.iterations)

rows = slice(0, 8 - 4 * ranks.rank)  # two batches here, one there
try:
    model.fit(x[rows], y[rows], batch_size=4, verbose=0,
              callbacks=[syncbn.callbacks.BroadcastVariables()])
except syncbn.errors.WorldError as error:
    report["uneven"] = str(error)
print(json.dumps(report))
"""


def _one_process(rates: list[float]) -> tuple[keras.Model, dict[str, list[float]]]:
    generator = np.random.default_rng(3)
    x = generator.normal(size=(10, 4)).astype("float32")
    y = (x.sum(axis=1, keepdims=True) > 0).astype("float32")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = keras.layers.BatchNormalization(name="norm")(
        keras.layers.Dense(3, name="hidden")(inputs)
    )
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid", name="out")(hidden))
    model.compile(
        keras.optimizers.SGD(0.1),
        loss="binary_crossentropy",
        metrics=["accuracy", keras.metrics.AUC(name="auc")],
    )
    follow = keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])
    history = model.fit(
        x,
        y,
        validation_data=(x, y),
        batch_size=10,
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[follow],
    )
    return model, history.history


@pytest.mark.multiprocess
@pytest.mark.timeout(90)
@pytest.mark.parametrize("backend", ["mpi", "tf"])
def test_a_two_rank_fit_is_one_fit(
    request: pytest.FixtureRequest, script: Callable[[str], Path], backend: str
) -> None:
    start: Launcher = request.getfixturevalue("mpirun" if backend == "mpi" else "tf_cluster")
    first, second = start(2, script(PROGRAM), [backend], timeout=80).json()
    assert first == second
    np.testing.assert_allclose(first["rates"], [0.1, 0.15, 0.2], rtol=1e-6)
    assert not first["jit"]

    model, history = _one_process([0.1, 0.15, 0.2])
    # Keras computes in float32 what the synchronized layer computes in float64.
    for epoch, logs in enumerate(first["epochs"]):
        for name, value in logs.items():
            np.testing.assert_allclose(value, history[name][epoch], atol=2e-5, err_msg=name)
    assert first["history"] == [logs["val_auc"] for logs in first["epochs"]]
    for mine, alone in zip(first["weights"], model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, alone.ravel(), atol=2e-5)
    for name in ("loss", "accuracy", "auc"):
        np.testing.assert_allclose(first["evaluate"][name], history[f"val_{name}"][-1], atol=2e-5)

    assert "norm/moving_variance differs on rank" in first["alarm"]
    assert "after step 2" in first["alarm"]
    assert first["stopped_at"] == 5
    assert "steps by rank [2, 1]" in first["uneven"]


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
