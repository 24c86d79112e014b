"""Equal starts: the variables of one rank, bit for bit, on all."""

import logging
import zlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from syncbn.communicators import communicator as current_communicator
from syncbn.communicators.base import Communicator
from syncbn.errors import WorldError

_log = logging.getLogger(__name__)


@tf.autograph.experimental.do_not_convert
def broadcast_variables(
    variables: Any, root_rank: int = 0, communicator: Communicator | None = None
) -> None:
    """Gives every rank the values of `root_rank`, bit for bit.

    Args:
        variables: Keras or TensorFlow variables, models (with their compiled optimizer), layers,
            optimizers, seed generators, or any nesting of lists of them. Equal in number, order,
            shape and dtype on every rank.
        root_rank: The rank whose values count.
        communicator: None for `syncbn.communicator()`.

    Raises:
        WorldError: The ranks' variables differ in number, shape or dtype.
        ValueError: A model is not built, so that it has no variables yet.
        TypeError: Something in `variables` holds no variables.
    """
    ranks = communicator or current_communicator()
    if ranks.size == 1:
        return
    targets = list(_variables_in(variables))
    values = [tf.convert_to_tensor(v.value if _is_keras(v) else v) for v in targets]
    if tf.executing_eagerly():
        _check_equal_shapes(values, ranks)
    for variable, value in zip(targets, ranks.broadcast(values, root_rank), strict=True):
        variable.assign(value)


def check_equal_steps(steps: int | None, ranks: Communicator) -> None:
    """Refuses epochs of different length: the ranks would wait for each other for ever.

    Args:
        steps: Of an epoch on this rank; None where it is not known, which passes.
        ranks: Compare their numbers, each its own.

    Raises:
        WorldError: On all ranks alike; the text names the numbers, or the ranks without data.
    """
    mine = np.zeros(ranks.size, np.int64)
    mine[ranks.rank] = -1 if steps is None else steps
    every = ranks.all_reduce(tf.constant(mine), "steps_of_an_epoch").numpy().tolist()
    idle = [rank for rank, count in enumerate(every) if count == 0]
    if idle and any(every):
        raise WorldError(
            "every rank needs data to train on, or the others wait for it for ever: start fewer "
            "ranks, or give each at least one sample (x[rank::size] leaves the last ranks without "
            f"when there are fewer samples than ranks). Received: no data on ranks {idle}; "
            f"steps by rank {every}"
        )
    if -1 not in every and len(set(every)) > 1:
        raise WorldError(
            "every rank must take as many steps an epoch as the others, or they wait for ever: cut "
            "the data into as many batches on each, or give fit(steps_per_epoch=n) "
            f"and a data set that repeats. Received: steps by rank {every}"
        )


def everywhere(fact: bool, ranks: Communicator) -> bool:
    """Whether `fact` holds on all ranks; every rank gets the same answer."""
    return _count(fact, ranks) == ranks.size


def differs(fact: bool, ranks: Communicator) -> bool:
    """Whether `fact` holds on some ranks only; every rank gets the same answer."""
    return 0 < _count(fact, ranks) < ranks.size


def _count(fact: bool, ranks: Communicator) -> int:
    return int(ranks.all_reduce(tf.constant(int(fact), tf.int64), "count"))


def build_by_tracing(model: keras.Model, batch: Any) -> bool:
    """Gives a compiled model, and its optimizers, the variables that its first step would make.

    Args:
        model: Compiled; its `train_step` is traced and not run.
        batch: `tf.TypeSpec`s of what `train_step` receives.

    Returns:
        Whether that was possible: not where the step needs numbers, as eager ones may.
    """

    def without_optionals(value: Any) -> Any:
        return None if isinstance(value, tf.experimental.Optional) else value

    @tf.autograph.experimental.do_not_convert
    def step(data: Any) -> Any:
        data = keras.tree.map_structure(without_optionals, data)
        return model.distribute_strategy.run(model.train_step, args=(data,))

    try:
        tf.function(step).get_concrete_function(batch)
    except Exception as error:  # of the user's step; run as a step it raises what it has to say
        _log.info("the model is built by its first step: %s", error)
        return False
    return True


def _check_equal_shapes(values: list[tf.Tensor], ranks: Communicator) -> None:
    """Ranks that broadcast different lists would wait for ever, or take each other's values."""
    described = ";".join(f"{value.dtype.name}{tuple(value.shape)}" for value in values)
    mine = tf.constant([len(values), zlib.crc32(described.encode())], tf.float64)
    total = ranks.all_reduce(mine, "broadcast_signature")
    if not bool(tf.reduce_all(total == mine * ranks.size)):
        raise WorldError(
            "broadcast_variables needs the same variables on every rank (number, order, shapes, "
            f"dtypes). Received: on rank {ranks.rank} {len(values)} variables, "
            "which differ from another rank's: is the model built everywhere?"
        )


def _variables_in(item: Any) -> Iterator[Any]:
    """The variables of `item` in a stable order, depth first."""
    if _is_keras(item) or isinstance(item, tf.Variable):
        yield item
    elif isinstance(item, list | tuple):
        for part in item:
            yield from _variables_in(part)
    elif isinstance(item, keras.random.SeedGenerator):
        yield item.state
    elif hasattr(item, "variables"):
        _check_built(item)
        yield from item.variables
        optimizer = getattr(item, "optimizer", None)
        if optimizer is not None:
            yield from optimizer.variables
    else:
        raise TypeError(
            "variables must be variables, models, layers, optimizers or seed generators. "
            f"Received: {item!r}"
        )


def _check_built(item: Any) -> None:
    """Refuses what would be given other values by each rank when it is built later."""
    if isinstance(item, keras.layers.Layer) and not is_built(item):
        raise ValueError(
            f"{item.name!r} is not built: it has no variables to broadcast yet. Call it on a batch "
            "first, or build(input_shape); for fit use "
            "callbacks=[syncbn.callbacks.BroadcastVariables()], which waits for that"
        )


def is_built(model: keras.layers.Layer) -> bool:
    """Whether `model` has all its variables: it was built, or each of its layers was."""
    layers = list(model._flatten_layers(include_self=False))
    return model.built or (bool(layers) and all(layer.built for layer in layers))


def _is_keras(variable: Any) -> bool:
    return isinstance(variable, keras.Variable)
