"""Fits with a NaN in the data of one rank, with a huge learning rate, with loss scaling."""

from typing import Any

import keras
import numpy as np

import syncbn
from syncbn.callbacks import NonFiniteGuard
from syncbn.communicators import Communicator

ROWS, STEPS, BAD_STEP = 4, 5, 3


def data(rank: int, bad: bool) -> tuple[np.ndarray, np.ndarray]:
    """Five batches of a rank; the third of rank 1 has a NaN, or is omitted on both."""
    x = np.random.default_rng([11, rank]).normal(size=(ROWS * STEPS, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    place = ROWS * (BAD_STEP - 1)
    if not bad:
        rest = np.r_[:place, place + ROWS : len(x)]
        return x[rest], y[rest]
    if rank == 1:
        x[place + 1, 2] = np.nan
    return x, y


def network(rate: float = 0.05, scale: float | None = None) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(3, name="hidden")(inputs)
    hidden = syncbn.SyncBatchNormalization(momentum=0.5, name="norm")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1, name="out")(hidden))
    plain = keras.optimizers.Adam(rate)
    if scale is not None:
        plain = keras.optimizers.LossScaleOptimizer(plain, initial_scale=scale)
    model.compile(syncbn.DistributedOptimizer(plain), loss="mse", jit_compile=False)
    return model


def fit(model: keras.Model, rows: tuple[np.ndarray, np.ndarray], *guard: Any) -> str:
    """The message of its error, or an empty string."""
    options = {"batch_size": ROWS, "shuffle": False, "verbose": 0, "epochs": 1}
    try:
        model.fit(*rows, callbacks=list(guard), **options)
    except syncbn.errors.NonFiniteError as error:
        return str(error)
    return ""


def state(model: keras.Model) -> list[str]:
    """All bits of the weights, moving statistics and the optimizer."""
    return [np.ascontiguousarray(v).tobytes().hex() for v in _variables(model)]


def _variables(model: keras.Model) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]


def run(communicator: Communicator) -> dict[str, Any]:
    rank = communicator.rank
    bad, good = data(rank, bad=True), data(rank, bad=False)
    report: dict[str, Any] = {}

    stopped = network()
    report["stop"] = fit(stopped, bad, NonFiniteGuard())
    report["steps before"] = int(stopped.optimizer.iterations)
    report["finite"] = all(bool(np.isfinite(v).all()) for v in _variables(stopped))

    skipping, without = network(), network()
    guard = NonFiniteGuard("skip")
    report["skip"] = fit(skipping, bad, guard)
    report["skipped"] = guard.skipped
    report["loss"] = float(skipping.get_metrics_result()["loss"])
    fit(without, good)
    report["as without"] = state(skipping) == state(without)
    report["state"] = state(skipping)

    report["rate"] = fit(network(1e30), good, NonFiniteGuard())
    scaled = network(scale=2.0**127)
    report["scaled"] = fit(scaled, good, NonFiniteGuard())
    report["scale"] = float(scaled.optimizer.dynamic_scale)
    return report
