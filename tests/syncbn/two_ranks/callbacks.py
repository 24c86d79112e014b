"""A `fit` with all callbacks, one that the alarm stops, and one with uneven batches."""

from typing import Any

import keras
import numpy as np

import syncbn
from syncbn.communicators import Communicator

EPOCHS, WARM_UP_EPOCHS, RATE = 3, 2, 0.1


def data() -> tuple[np.ndarray, np.ndarray]:
    """Ten rows: seven for the first rank, three for the second."""
    x = np.random.default_rng(3).normal(size=(10, 4)).astype("float32")
    return x, (x.sum(axis=1, keepdims=True) > 0).astype("float32")


def classifier(norm: type[keras.layers.Layer]) -> keras.Model:
    inputs = keras.Input((4,))
    hidden = norm(name="norm")(keras.layers.Dense(3, name="hidden")(inputs))
    return keras.Model(inputs, keras.layers.Dense(1, "sigmoid", name="out")(hidden))


def measured(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, **options: Any
) -> keras.Model:
    metrics = ["accuracy", keras.metrics.AUC(name="auc")]
    model.compile(optimizer, loss="binary_crossentropy", metrics=metrics, **options)
    return model


class _Watch(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []
        self.epochs: list[dict[str, float]] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epochs.append({name: float(value) for name, value in (logs or {}).items()})


class _Disturb(keras.callbacks.Callback):
    """Changes a statistic of one rank slightly, after its fourth step."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._rank == 1 and int(self.model.optimizer.iterations) == 4:
            layer = self.model.get_layer("norm")
            layer.moving_variance.assign(layer.moving_variance + 1e-6)


def _distributed() -> keras.optimizers.Optimizer:
    return syncbn.DistributedOptimizer(keras.optimizers.SGD(RATE))


def run(communicator: Communicator) -> dict[str, Any]:
    rank = communicator.rank
    x, y = (part[:7] if rank == 0 else part[7:] for part in data())
    keras.utils.set_random_seed(rank)  # unequal starts, made equal by BroadcastVariables
    model = measured(classifier(syncbn.SyncBatchNormalization), _distributed(), jit_compile=True)
    syncbn.weigh_rows(model)
    settings = {"shuffle": False, "verbose": 0}
    watch = _Watch()
    followed = [
        syncbn.callbacks.BroadcastVariables(),
        syncbn.callbacks.AverageMetrics(),
        syncbn.callbacks.WarmUpLearningRate(epochs=WARM_UP_EPOCHS),
        syncbn.callbacks.DivergenceAlarm(1),
        watch,
    ]
    part = {"validation_data": (x, y), "batch_size": 7, "epochs": EPOCHS}
    history = model.fit(x, y, callbacks=followed, **part, **settings).history
    report = {"epochs": watch.epochs, "rates": watch.rates, "history": history["val_auc"]}
    report["jit"] = bool(model.jit_compile)
    model.evaluate(x, y, verbose=0, callbacks=[syncbn.callbacks.AverageMetrics()])
    report["evaluate"] = {k: float(v) for k, v in model.get_metrics_result().items()}
    report["weights"] = [weight.ravel().tolist() for weight in model.get_weights()]

    again, watch = measured(classifier(syncbn.SyncBatchNormalization), _distributed()), _Watch()
    rise = [syncbn.callbacks.BroadcastVariables(), syncbn.callbacks.WarmUpLearningRate(2), watch]
    again.fit(*(part[:2] for part in data()), batch_size=1, epochs=3, callbacks=rise, **settings)
    report["rates in steps"] = watch.rates

    alarm = [_Disturb(rank), syncbn.callbacks.DivergenceAlarm(1)]
    try:
        model.fit(x, y, batch_size=7, epochs=5, callbacks=alarm, **settings)
    except syncbn.errors.DivergenceError as error:
        report["alarm"] = str(error)
        report["stopped at"] = int(model.optimizer.iterations)

    rows = slice(0, 8 - 4 * rank)  # two batches on rank 0, one on rank 1
    x, y = (part[rows] for part in data())
    try:
        once = [syncbn.callbacks.BroadcastVariables()]
        model.fit(x, y, batch_size=4, verbose=0, callbacks=once)
    except syncbn.errors.WorldError as error:
        report["uneven"] = str(error)
    return report
