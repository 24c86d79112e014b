"""Compiled models with a distributed optimizer: loading, copying and weighting by rows."""

import os
from typing import Any

import keras
import tensorflow as tf

from syncbn.optimizer import DistributedOptimizer, is_distributed


def weigh_rows(model: keras.Model) -> keras.Model:
    """Makes `fit` and `train_on_batch` weight each rank by the number of rows of its batch.

    Needed if batch sizes may differ between ranks, for example in an uneven last step.

    Args:
        model: Compiled with a `DistributedOptimizer`; changed in place.

    Returns:
        `model`.

    Raises:
        ValueError: The optimizer is not distributed.
    """
    optimizer = model.optimizer
    if not is_distributed(optimizer):
        raise ValueError(
            "model must be compiled with a syncbn.DistributedOptimizer. "
            f"Received: optimizer={optimizer!r}"
        )
    object.__setattr__(optimizer, "_weighs_rows", True)
    train_step = model.train_step

    def weighted_train_step(data: Any) -> Any:
        with optimizer.weighted(tf.shape(tf.nest.flatten(data)[0])[0]):
            return train_step(data)

    model.train_step = weighted_train_step
    return model


def load_model(
    filepath: str | os.PathLike[str],
    custom_objects: dict[str, Any] | None = None,
    compile: bool = True,  # noqa: A002 - Keras' name for it
    safe_mode: bool = True,
    **distribution: Any,
) -> keras.Model:
    """Loads a model and makes its optimizer average gradients, if it does not do so already.

    Args:
        filepath: As in `keras.models.load_model`, like the next three arguments.
        custom_objects: Classes and functions by name.
        compile: Whether to compile the model as when it was saved.
        safe_mode: Whether to reject files that could run arbitrary code.
        **distribution: Arguments of `DistributedOptimizer` for an optimizer that was saved without
            it; a distributed optimizer keeps its own.

    Returns:
        The model. `fit` still needs `callbacks.BroadcastVariables`, unless all ranks load the same
        file.
    """
    model = keras.models.load_model(filepath, custom_objects, compile, safe_mode)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return model
    inner = getattr(optimizer, "inner_optimizer", None)
    if not is_distributed(optimizer) and not is_distributed(inner):
        DistributedOptimizer(optimizer, **distribution)
    elif getattr(optimizer, "_weighs_rows", False):
        weigh_rows(model)
    return model


def carry_distribution(source: keras.Model, target: keras.Model) -> None:
    """Copies the state of a distributed optimizer that its configuration does not contain.

    That is its communicator, and the wrapped `train_step` of a model that is weighted by rows.
    """
    example, optimizer = source.optimizer, target.optimizer
    if is_distributed(example) and is_distributed(optimizer):
        object.__setattr__(optimizer, "_communicator", example._communicator)
        if example._weighs_rows:
            weigh_rows(target)
