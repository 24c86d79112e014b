"""Compiled models whose optimizer is distributed: loaded, rebuilt, with their rows weighed."""

import os
from typing import Any

import keras
import tensorflow as tf

from syncbn.optimizer import DistributedOptimizer, is_distributed


def weigh_rows(model: keras.Model) -> keras.Model:
    """Makes `fit` and `train_on_batch` of a compiled model weigh each rank by its batch's rows.

    Needed when ranks may see batches of different sizes, as in an uneven last step.
    """
    optimizer = model.optimizer
    if not is_distributed(optimizer):
        raise ValueError(
            "model must be compiled with a syncbn.DistributedOptimizer. "
            f"Received: optimizer={optimizer!r}"
        )
    object.__setattr__(optimizer, "_weighs_rows", True)
    train_step = model.train_step

    def weighed_train_step(data: Any) -> Any:
        with optimizer.weighed(tf.shape(tf.nest.flatten(data)[0])[0]):
            return train_step(data)

    model.train_step = weighed_train_step
    return model


def load_model(
    filepath: str | os.PathLike[str],
    custom_objects: dict[str, Any] | None = None,
    compile: bool = True,  # noqa: A002 - Keras' name for it
    safe_mode: bool = True,
    **distribution: Any,
) -> keras.Model:
    """Loads a model whose optimizer averages gradients, also from a file that was saved without.

    Args:
        filepath: As for `keras.models.load_model`, and so are the next three.
        custom_objects: Classes and functions by name.
        compile: Whether to compile the model as it was when it was saved.
        safe_mode: Whether to refuse what could run code.
        **distribution: Arguments of `DistributedOptimizer` for an optimizer that was saved without
            it; one that was saved with it keeps its own.

    Returns:
        The model. `fit` still needs `callbacks.BroadcastVariables`, unless all ranks have loaded
        the same file.
    """
    model = keras.models.load_model(filepath, custom_objects, compile, safe_mode)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return model
    inside = getattr(optimizer, "inner_optimizer", None)
    if not is_distributed(optimizer) and not is_distributed(inside):
        DistributedOptimizer(optimizer, **distribution)
    elif getattr(optimizer, "_weighs_rows", False):
        weigh_rows(model)
    return model


def carry_distribution(source: keras.Model, target: keras.Model) -> None:
    """Gives the distributed optimizer of `target` what its configuration cannot say.

    Its communicator, and the wrapped `train_step` of a model that weighs rows.
    """
    example, optimizer = source.optimizer, target.optimizer
    if is_distributed(example) and is_distributed(optimizer):
        object.__setattr__(optimizer, "_ranks", example._ranks)
        if example._weighs_rows:
            weigh_rows(target)
