"""Programs that train by `fit`: every way to build, compile, feed and change a model."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import syncbn
from syncbn import DistributedOptimizer, broadcast_variables
from syncbn.callbacks import AverageMetrics, BroadcastVariables, WarmUpLearningRate
from tests.syncbn.equal_models import models
from tests.syncbn.equal_models.models import ROWS, rows
from tests.syncbn.equal_models.styles import VARIANTS, compiled, fit, policy, sgd, state, variant


def _style(name: str, make: Callable[[], keras.Model], **options: Any) -> None:
    def run(rank: int) -> list[Any]:
        return state(fit(compiled(make(), **options), rank))

    VARIANTS[name] = run


for _name, _make in {
    "built": models.built,
    "unbuilt": models.unbuilt,
    "functional": models.functional,
    "subclassed": models.Subclassed,
    "embedded": models.Embedded,
    "own_step": models.OwnStep,
    "without_norm": models.without_norm,
}.items():
    _style(_name, _make)
for _name, _make in {"built": models.built, "unbuilt": models.unbuilt}.items():
    _style(f"{_name}_eagerly", _make, run_eagerly=True)
    _style(f"{_name}_steps_per_execution", _make, steps_per_execution=2)
_style("subclassed_eagerly", models.Subclassed, run_eagerly=True)
_style("step_that_needs_numbers", models.Numbers, run_eagerly=True)
_style("unbuilt_asked_for_xla", models.unbuilt, jit_compile=True)


def _optimizer(name: str, make: Callable[[], Any]) -> None:
    def run(rank: int) -> list[Any]:
        return state(fit(compiled(models.unbuilt(), make()), rank))

    VARIANTS[f"optimizer_{name}"] = run


for _name, _optimize in {
    "by_name": lambda: DistributedOptimizer("adam"),
    "passes": lambda: DistributedOptimizer(sgd(), backward_passes_per_step=2),
    "compressed": lambda: DistributedOptimizer(sgd(), compression="bfloat16"),
    "clipped": lambda: DistributedOptimizer(keras.optimizers.Adam(0.01, global_clipnorm=0.1)),
    "averages": lambda: DistributedOptimizer(
        keras.optimizers.AdamW(0.01, use_ema=True, ema_overwrite_frequency=3)
    ),
    "accumulates": lambda: DistributedOptimizer(
        keras.optimizers.SGD(0.05, gradient_accumulation_steps=2)
    ),
    "scales_inside": lambda: DistributedOptimizer(keras.optimizers.LossScaleOptimizer(sgd())),
}.items():
    _optimizer(_name, _optimize)


@variant
def mixed_float16(rank: int) -> list[Any]:
    """Keras wraps the optimizer in loss scaling; rank 1 overflows occasionally."""
    with policy("mixed_float16"):
        model = compiled(models.unbuilt())
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        x, y = rows(rank)
        x[7] *= 1e4 if rank == 1 else 1
        options = {"batch_size": ROWS, "epochs": 3, "verbose": 0, "shuffle": False}
        model.fit(x, y, callbacks=[BroadcastVariables()], **options)
        assert float(model.optimizer.dynamic_scale) < 2.0**15, "no overflow was seen"
        return state(model)


@variant
def mixed_bfloat16(rank: int) -> list[Any]:
    with policy("mixed_bfloat16"):
        return state(fit(compiled(models.unbuilt()), rank))


@variant
def two_optimizers(rank: int) -> list[Any]:
    model = models.Pair()
    first, second = DistributedOptimizer(sgd()), DistributedOptimizer(keras.optimizers.Adam(0.01))
    model.compile(first, second)
    fit(model, rank)
    return [*model.weights, *first.variables, *second.variables]


@variant
def all_callbacks(rank: int) -> list[Any]:
    watch = [AverageMetrics(), WarmUpLearningRate(epochs=1), syncbn.callbacks.DivergenceAlarm(1)]
    return state(fit(compiled(models.unbuilt(), metrics=["mae"]), rank, *watch))


@variant
def data_set(rank: int) -> list[Any]:
    batches = tf.data.Dataset.from_tensor_slices(rows(rank)).shuffle(24).batch(ROWS)
    model = compiled(models.unbuilt())
    model.fit(batches, epochs=2, verbose=0, callbacks=[BroadcastVariables()])
    return state(model)


@variant
def generator(rank: int) -> list[Any]:
    def batches() -> Iterator[Any]:
        x, y = rows(rank)
        while True:
            yield x[:ROWS], y[:ROWS], np.full(ROWS, 0.5, "float32")

    model = compiled(models.Subclassed())
    callbacks = [BroadcastVariables()]
    model.fit(batches(), steps_per_epoch=3, epochs=2, verbose=0, callbacks=callbacks)
    return state(model)


@variant
def weighted_rows(rank: int) -> list[Any]:
    model = syncbn.weigh_rows(compiled(models.unbuilt()))
    x, y = (part[: 10 - 5 * rank] for part in rows(rank))
    callbacks = [BroadcastVariables()]
    model.fit(x, y, batch_size=5 - 2 * rank, verbose=0, callbacks=callbacks)
    return state(model)


@variant
def built_on_one_rank_only(rank: int) -> list[Any]:
    model = compiled(models.unbuilt())
    if rank == 0:
        model.build((None, 4))
    return state(fit(model, rank))


@variant
def fitted_twice(rank: int) -> list[Any]:
    model = compiled(models.unbuilt())
    for _ in range(2):
        fit(model, rank, WarmUpLearningRate(epochs=1))
        assert np.isclose(float(model.optimizer.learning_rate), 0.1), "raised twice"
    return state(model)


@variant
def interrupted_before_its_first_step(rank: int) -> list[Any]:
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    model = compiled(models.unbuilt())
    with suppress(KeyboardInterrupt):
        fit(model, rank, Interrupt())
    return state(fit(model, rank))


@variant
def cloned(rank: int) -> list[Any]:
    model = fit(compiled(models.built()), rank)
    copy = keras.models.clone_model(model)
    copy.compile_from_config(model.get_compile_config())
    return state(fit(copy, rank))


@variant
def frozen_then_not(rank: int) -> list[Any]:
    model = models.unbuilt()
    model.layers[0].trainable = False
    fit(compiled(model), rank)
    model.layers[0].trainable = True
    fit(compiled(model), rank)
    model.layers[1].trainable = False
    return state(fit(compiled(model), rank))


@variant
def compiled_anew(rank: int) -> list[Any]:
    model = fit(compiled(models.unbuilt()), rank)
    return state(fit(compiled(model, DistributedOptimizer("rmsprop")), rank))


@variant
def recompiled_under_mixed_float16(rank: int) -> list[Any]:
    """An optimizer used without loss scaling first, and already built when Keras wraps it."""
    model = fit(compiled(models.without_norm()), rank)
    optimizer = model.optimizer
    with policy("mixed_float16"):
        scaled = compiled(models.built())
        fit(scaled, rank)
    assert optimizer is not scaled.optimizer
    return state(scaled)


@variant
def by_batches(rank: int) -> list[Any]:
    model = compiled(models.built())
    broadcast_variables(model)
    x, y = rows(rank)
    for _ in range(3):
        model.train_on_batch(x, y)
    return state(model)


@variant
def trained_alone_for_a_while(rank: int) -> list[Any]:
    """Rank 1 trains an additional model alone."""
    if rank == 1:
        alone = compiled(models.without_norm(), sgd())
        x, y = rows(rank)
        alone.fit(x, y, batch_size=ROWS, verbose=0)
    return state(fit(compiled(models.unbuilt()), rank))


@variant
def independent_on_purpose(rank: int) -> list[Any]:
    alone = compiled(models.without_norm(), syncbn.train_independently(sgd()))
    x, y = rows(rank)
    alone.fit(x, y, batch_size=ROWS, verbose=0, epochs=2)
    return [tf.constant(0)]
