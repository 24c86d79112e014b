"""Detects automatically that ranks of a job train different models.

`init` enables it in a job of several processes. From then on, updates of every Keras optimizer, in
`fit` or in a custom loop, are followed by a comparison (`fingerprints`) after steps 1, 2, 4, 8, ...
and every 1024th step. A final comparison runs at exit.
"""

import atexit
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from syncbn.communicators.base import Communicator
from syncbn.communicators.mailboxes import Mailbox
from syncbn.errors import DivergenceError
from syncbn.fingerprints import ConsistencyCheck
from syncbn.gradients import keras_reduces

_log = logging.getLogger(__name__)

_check: ConsistencyCheck | None = None
_generations = 0
# The collective that averages the gradients of the update being traced or run, and its ranks.
_averaged: list[tuple[str, Communicator]] = []
_independent = False
_original_apply = keras.optimizers.Optimizer.apply


def enable(world: Communicator, mailbox: Mailbox) -> None:
    """Starts to check every Keras optimizer of this process."""
    global _check, _generations
    _generations += 1
    _check = ConsistencyCheck(world, mailbox, _generations)
    # Keras has no hook that is called for every update, including those of custom loops.
    keras.optimizers.Optimizer.apply = _apply_and_check
    atexit.register(_at_exit)


def disable() -> None:
    """Restores Keras' method."""
    global _check
    _check = None
    keras.optimizers.Optimizer.apply = _original_apply
    atexit.unregister(_at_exit)


@contextmanager
def averaged(label: str, group: Communicator) -> Iterator[None]:
    """Context in which updates use gradients that syncbn has averaged over `group`."""
    _averaged.append((label, group))
    try:
        yield
    finally:
        _averaged.pop()


@contextmanager
def paused() -> Iterator[None]:
    """Context without comparisons, before a broadcast."""
    global _check
    check, _check = _check, None
    try:
        yield
    finally:
        _check = check


def train_independently(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Disables the consistency check for an optimizer, so that each rank trains its own model.

    Args:
        optimizer: Any Keras optimizer that is not distributed.

    Returns:
        The same optimizer.
    """
    global _independent
    _independent = True
    object.__setattr__(optimizer, "_trains_independently", True)
    return optimizer


def note_tape() -> None:
    """Notes that a `DistributedGradientTape` averages gradients before optimizers get them."""
    if _check is not None:
        _check.gradients_are_averaged = True


def note_layer(layer: Any) -> None:
    """Notes a synchronized layer in training."""
    if _check is not None:
        _check.note_layer(layer)


@tf.autograph.experimental.do_not_convert
def _apply_and_check(
    self: keras.optimizers.Optimizer, grads: Any, trainable_variables: Any = None
) -> None:
    if trainable_variables is not None:
        trainable_variables = list(trainable_variables)
    _original_apply(self, grads, trainable_variables)
    check = _check
    if check is None or keras_reduces() or getattr(self, "_trains_independently", False):
        return
    variables = self._trainable_variables if trainable_variables is None else trainable_variables
    check.after_update(self, variables, *(_averaged[-1] if _averaged else (None, None)))


def _at_exit() -> None:
    check = _check
    if check is None or getattr(sys, "last_value", None) is not None:
        return  # the program ends with an exception
    try:
        check.final_check(layers=not _independent)
    except DivergenceError as error:
        logging.shutdown()
        # An exception in an atexit handler is printed, but the exit code stays 0.
        sys.stdout.flush()
        print(f"{type(error).__module__}.{type(error).__name__}: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
    except Exception as error:
        _log.debug("the final comparison of the ranks failed: %s", error)
