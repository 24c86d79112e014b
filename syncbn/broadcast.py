"""Initial broadcast: every rank starts from the variables of one rank, bit for bit."""

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
    """Copies the values of `root_rank` to every rank, bit for bit.

    Args:
        variables: Keras or TensorFlow variables, models (with their compiled optimizer), layers,
            optimizers, seed generators, or any nesting of lists of them. Equal in number, order,
            shape and dtype on every rank.
        root_rank: The rank whose values are sent.
        communicator: None for `syncbn.communicator()`.

    Raises:
        WorldError: The ranks' variables differ in number, shape or dtype.
        ValueError: A model is not built and has no variables yet.
        TypeError: An item of `variables` has no variables.
    """
    communicator = communicator or current_communicator()
    if communicator.size == 1:
        return
    targets = list(_variables_in(variables))
    values = [tf.convert_to_tensor(v.value if _is_keras(v) else v) for v in targets]
    if tf.executing_eagerly():
        _check_equal_shapes(values, communicator)
    for variable, value in zip(targets, communicator.broadcast(values, root_rank), strict=True):
        variable.assign(value)


def check_equal_steps(steps: int | None, communicator: Communicator) -> None:
    """Rejects epochs of different length, in which ranks would wait for each other forever.

    Args:
        steps: Steps of an epoch on this rank; None if unknown, which disables the check.
        communicator: The ranks to compare.

    Raises:
        WorldError: On every rank; the message lists the steps of each rank, or the ranks without
            data.
    """
    mine = np.zeros(communicator.size, np.int64)
    mine[communicator.rank] = -1 if steps is None else steps
    every = communicator.all_reduce(tf.constant(mine), "steps_of_an_epoch").numpy().tolist()
    idle = [rank for rank, count in enumerate(every) if count == 0]
    if idle and any(every):
        raise WorldError(
            "every rank needs training data, otherwise the others wait for it forever: start fewer "
            "ranks, or give each rank at least one sample (x[rank::size] gives the last ranks none "
            f"if there are fewer samples than ranks). Received: no data on ranks {idle}; "
            f"steps by rank {every}"
        )
    if -1 not in every and len(set(every)) > 1:
        raise WorldError(
            "every rank must take as many steps an epoch as the others, otherwise ranks wait for "
            "each other forever: give every rank the same number of batches, or use "
            "fit(steps_per_epoch=n) with a data set that repeats. "
            f"Received: steps by rank {every}"
        )


def everywhere(fact: bool, communicator: Communicator) -> bool:
    """Whether `fact` is true on all ranks; every rank gets the same answer."""
    return _count(fact, communicator) == communicator.size


def differs(fact: bool, communicator: Communicator) -> bool:
    """Whether `fact` is true on some ranks but not all; every rank gets the same answer."""
    return 0 < _count(fact, communicator) < communicator.size


def _count(fact: bool, communicator: Communicator) -> int:
    return int(communicator.all_reduce(tf.constant(int(fact), tf.int64), "count"))


def build_by_tracing(model: keras.Model, batch: Any) -> bool:
    """Creates the variables that the first step of a compiled model would create.

    Args:
        model: Compiled; its `train_step` is traced, not run.
        batch: `tf.TypeSpec`s of the argument of `train_step`.

    Returns:
        False if tracing fails, for example because an eager step reads values of the batch.
    """

    def without_optionals(value: Any) -> Any:
        return None if isinstance(value, tf.experimental.Optional) else value

    @tf.autograph.experimental.do_not_convert
    def step(data: Any) -> Any:
        data = keras.tree.map_structure(without_optionals, data)
        return model.distribute_strategy.run(model.train_step, args=(data,))

    try:
        tf.function(step).get_concrete_function(batch)
    except Exception as error:  # from the user's step, which raises it again when it runs
        _log.info("the first step builds the model, since it cannot be traced: %s", error)
        return False
    return True


def _check_equal_shapes(values: list[tf.Tensor], communicator: Communicator) -> None:
    """Ranks that broadcast different lists would hang, or assign values to wrong variables."""
    described = ";".join(f"{value.dtype.name}{tuple(value.shape)}" for value in values)
    mine = tf.constant([len(values), zlib.crc32(described.encode())], tf.float64)
    total = communicator.all_reduce(mine, "broadcast_signature")
    if not bool(tf.reduce_all(total == mine * communicator.size)):
        raise WorldError(
            "broadcast_variables needs the same variables on every rank (number, order, shapes, "
            f"dtypes). Received: {len(values)} variables on rank {communicator.rank}, "
            "which differ from those of another rank: is the model built on every rank?"
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
    """Rejects unbuilt layers: built later, each rank would initialise them differently."""
    if isinstance(item, keras.layers.Layer) and not is_built(item):
        raise ValueError(
            f"{item.name!r} is not built: it has no variables to broadcast yet. Call it on a batch "
            "first, or build(input_shape); for fit use "
            "callbacks=[syncbn.callbacks.BroadcastVariables()], which broadcasts once it is built"
        )


def is_built(model: keras.layers.Layer) -> bool:
    """Whether `model` has all its variables: it is built, or each of its layers is."""
    layers = list(model._flatten_layers(include_self=False))
    return model.built or (bool(layers) and all(layer.built for layer in layers))


def _is_keras(variable: Any) -> bool:
    return isinstance(variable, keras.Variable)
