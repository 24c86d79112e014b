"""The table of programs that must train one model, and what they share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from syncbn import DistributedOptimizer
from syncbn.callbacks import BroadcastVariables
from tests.syncbn.equal_models.models import ROWS, rows

Variant = Callable[[int], list[Any]]
VARIANTS: dict[str, Variant] = {}


def variant(run: Variant) -> Variant:
    VARIANTS[run.__name__] = run
    return run


def state(model: keras.Model) -> list[Any]:
    optimizer = getattr(model, "optimizer", None)
    return [*model.weights, *([] if optimizer is None else optimizer.variables)]


def sgd() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.05, momentum=0.9)


def fit(model: keras.Model, rank: int, *others: Any, **options: Any) -> keras.Model:
    x, y = rows(rank)
    settings = {"batch_size": ROWS, "epochs": 2, "verbose": 0} | options
    model.fit(x, y, callbacks=[BroadcastVariables(), *others], **settings)
    return model


def compiled(model: keras.Model, optimizer: Any = None, **options: Any) -> keras.Model:
    model.compile(optimizer or DistributedOptimizer(sgd()), loss="mse", **options)
    return model


@contextmanager
def policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
