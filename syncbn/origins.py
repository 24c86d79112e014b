"""Where a value that is not finite came from: the batch, a variable, or the first layer."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from syncbn.communicators.base import Communicator
from syncbn.update_guard import all_finite


class Origin(NamedTuple):
    """What was found: `text` for people, and the ranks on which it is so."""

    text: str
    ranks: list[int]

    def __str__(self) -> str:
        where = f"rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}"
        return self.text.format(where=where)


def find_origin(
    model: keras.Model,
    inputs: Any,
    ranks: Communicator,
    loss: Any = 0.0,
    training: bool = True,
) -> Origin | None:
    """The first thing that is not finite when `model` computes on `inputs`; None if all is.

    A collective call in training: every rank gives its own batch, and all get the same answer. The
    variables are left as they are.

    Args:
        model: With the weights from before the update.
        inputs: What the model is called with: one tensor, or a structure of them.
        ranks: Compare what they have found.
        loss: Of this rank's batch.
        training: How the model is called; without, only this rank's batch is looked at.
    """
    batch = [tf.convert_to_tensor(part) for part in tf.nest.flatten(inputs)]
    names: list[str] = []
    found: int | None = None  # what comes first: 0 the variables, 1 the batch, then the layers
    broken = first_non_finite(model.variables)
    if broken is not None:
        found = 0
    elif not bool(all_finite(batch)):
        found = 1
    outputs: list[bool] = []
    statistics = [v for v in model.non_trainable_variables if _is_floating(v)]
    before = [v.numpy() for v in statistics]

    def look(layer: Any, output: Any) -> None:
        names.append(layer.path)
        outputs.append(bool(all_finite([t for t in tf.nest.flatten(output) if t is not None])))

    try:
        with _watched(model, look):
            model(inputs, training=training)
    finally:
        for variable, value in zip(statistics, before, strict=True):
            variable.assign(value)
    if found is None and (False in outputs or not np.isfinite(float(loss))):
        found = 2 + (outputs.index(False) if False in outputs else len(names))
    places = np.zeros(ranks.size)
    places[ranks.rank] = 0 if found is None else 1 + found
    if training:
        places = ranks.all_reduce(tf.constant(places), "non_finite_places").numpy()
    known = [int(place) - 1 for place in places if place > 0]
    if not known:
        return None
    first = min(known)
    where = [rank for rank, place in enumerate(places) if int(place) - 1 == first]
    if first == 0:
        # Equal on all ranks, unless it is a moving statistic of one of them alone.
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
def _watched(model: keras.Model, look: Callable[[Any, Any], None]) -> Iterator[None]:
    """Within it, `look(layer, output)` is called for each layer that holds no others."""
    leaves = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if not list(layer._flatten_layers(include_self=False))
    ]

    def watch(layer: Any) -> None:
        call = layer.call

        def watched(*arguments: Any, **options: Any) -> Any:
            output = call(*arguments, **options)
            look(layer, output)
            return output

        # Past the tracking of Keras' own __setattr__, which is for state.
        object.__setattr__(layer, "call", watched)

    for leaf in leaves:
        watch(leaf)
    try:
        yield
    finally:
        for leaf in leaves:
            vars(leaf).pop("call", None)
