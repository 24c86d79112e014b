"""Finds the origin of a non-finite value: a variable, the batch, or the first layer."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from syncbn.communicators.base import Communicator
from syncbn.update_guard import all_finite


class Origin(NamedTuple):
    """The origin in words, with `{where}` as the place of the ranks, and the ranks."""

    text: str
    ranks: list[int]

    def __str__(self) -> str:
        where = f"rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}"
        return self.text.format(where=where)


def find_origin(
    model: keras.Model,
    inputs: Any,
    communicator: Communicator,
    loss: Any = 0.0,
    training: bool = True,
) -> Origin | None:
    """The first non-finite value when `model` is called on `inputs`; None if all are finite.

    Collective if `training`: every rank passes its own batch, and all get the same answer. The
    variables do not change.

    Args:
        model: The model, with the weights from before the update.
        inputs: The inputs of the call: a tensor, or a structure of tensors.
        communicator: The ranks that compare their results.
        loss: The loss of this rank's batch.
        training: Passed to the model; if False, only this rank's batch is checked.
    """
    batch = [tf.convert_to_tensor(part) for part in tf.nest.flatten(inputs)]
    names: list[str] = []
    found: int | None = None  # in this order: 0 variables, 1 batch, 2 + i layer i
    broken = first_non_finite(model.variables)
    if broken is not None:
        found = 0
    elif not bool(all_finite(batch)):
        found = 1
    outputs: list[bool] = []
    statistics = [v for v in model.non_trainable_variables if _is_floating(v)]
    before = [v.numpy() for v in statistics]

    def check(layer: Any, output: Any) -> None:
        names.append(layer.path)
        outputs.append(bool(all_finite([t for t in tf.nest.flatten(output) if t is not None])))

    try:
        with _observed(model, check):
            model(inputs, training=training)
    finally:
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(value)
    if found is None and (False in outputs or not np.isfinite(float(loss))):
        found = 2 + (outputs.index(False) if False in outputs else len(names))
    places = np.zeros(communicator.size)
    places[communicator.rank] = 0 if found is None else 1 + found
    if training:
        places = communicator.all_reduce(tf.constant(places), "non_finite_places").numpy()
    known = [int(place) - 1 for place in places if place > 0]
    if not known:
        return None
    first = min(known)
    where = [rank for rank, place in enumerate(places) if int(place) - 1 == first]
    if first == 0:
        # Variables are equal on all ranks, except moving statistics that are not synchronized.
        name = "a variable" if broken is None else f"the variable {broken.path}"
        return Origin(f"{name} is not finite on {{where}}", where)
    if first == 1:
        return Origin("the batch of {where} holds NaN or infinite values", where)
    if first == 2 + len(names):
        return Origin("the loss is not finite on {where}", where)
    return Origin(f"the output of layer {names[first - 2]} is not finite on {{where}}", where)


def first_non_finite(variables: Iterable[Any]) -> Any | None:
    """The first of `variables` with an element that is NaN or infinite, or None."""
    return next((v for v in variables if not bool(all_finite([v]))), None)


def _is_floating(variable: Any) -> bool:
    return bool(tf.as_dtype(variable.dtype).is_floating)


@contextmanager
def _observed(model: keras.Model, check: Callable[[Any, Any], None]) -> Iterator[None]:
    """Context in which `check(layer, output)` is called for each layer without sublayers."""
    leaves = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if not list(layer._flatten_layers(include_self=False))
    ]

    def watch(layer: Any) -> None:
        call = layer.call

        def watched(*arguments: Any, **options: Any) -> Any:
            output = call(*arguments, **options)
            check(layer, output)
            return output

        # Bypasses Keras' __setattr__, which tracks state.
        object.__setattr__(layer, "call", watched)

    for leaf in leaves:
        watch(leaf)
    try:
        yield
    finally:
        for leaf in leaves:
            vars(leaf).pop("call", None)
