"""Finds by itself that the ranks of a job do not train one model.

`init` arms it in a job of several processes. From then on every Keras optimizer's update, in `fit`
or in a loop of one's own, is followed now and then (after the steps 1, 2, 4, 8, ... and each
1024th) by a comparison (`fingerprints`), and the end of the program by a last one.
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
_plain_apply = keras.optimizers.Optimizer.apply


def arm(world: Communicator, mailbox: Mailbox) -> None:
    """Watches every Keras optimizer of this process from now on."""
    global _check, _generations
    _generations += 1
    _check = ConsistencyCheck(world, mailbox, _generations)
    # Keras offers no hook that every update passes, custom loops included.
    keras.optimizers.Optimizer.apply = _apply_and_check
    atexit.register(_at_exit)


def disarm() -> None:
    """Leaves Keras as it was."""
    global _check
    _check = None
    keras.optimizers.Optimizer.apply = _plain_apply
    atexit.unregister(_at_exit)


@contextmanager
def averaged(label: str, group: Communicator) -> Iterator[None]:
    """Within it, updates use gradients that syncbn has averaged over `group`."""
    _averaged.append((label, group))
    try:
        yield
    finally:
        _averaged.pop()


@contextmanager
def paused() -> Iterator[None]:
    """Within it nothing is compared: the ranks are about to be made equal."""
    global _check
    check, _check = _check, None
    try:
        yield
    finally:
        _check = check


def train_independently(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Lets each rank train a model of its own by this optimizer, without the check of `init`.

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
    """Called by a `DistributedGradientTape`: optimizers receive averaged gradients."""
    if _check is not None:
        _check.gradients_are_averaged = True


def note_layer(layer: Any) -> None:
    """Called by a synchronized layer in training."""
    if _check is not None:
        _check.note_layer(layer)


@tf.autograph.experimental.do_not_convert
def _apply_and_check(
    self: keras.optimizers.Optimizer, grads: Any, trainable_variables: Any = None
) -> None:
    if trainable_variables is not None:
        trainable_variables = list(trainable_variables)
    _plain_apply(self, grads, trainable_variables)
    check = _check
    if check is None or keras_reduces() or getattr(self, "_trains_independently", False):
        return
    variables = self._trainable_variables if trainable_variables is None else trainable_variables
    check.after_update(self, variables, *(_averaged[-1] if _averaged else (None, None)))


def _at_exit() -> None:
    check = _check
    if check is None or getattr(sys, "last_value", None) is not None:
        return  # the program fails already, and says why
    try:
        check.last_look(layers=not _independent)
    except DivergenceError as error:
        logging.shutdown()
        # An exception here would be printed, and the exit code stay 0.
        sys.stdout.flush()
        print(f"{type(error).__module__}.{type(error).__name__}: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
    except Exception as error:
        _log.debug("no last comparison of the ranks: %s", error)
