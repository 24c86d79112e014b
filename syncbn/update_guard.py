"""Skips updates with NaN or infinite gradients.

Gradients are checked after the reduction over ranks: all ranks have the same values then, and skip
the same updates without additional communication. A non-finite loss on one rank is added to one of
its gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from syncbn.gradients import Gradient

# Reading all gradients of a large model again takes milliseconds. A non-finite value in the
# backward pass also reaches the small gradients of a layer (bias, gamma, beta).
_SMALL = 1 << 16

# The number of halvings of the loss scale after which overflows are considered permanent.
_HALVINGS = 30


class UpdateGuard:
    """Skips updates of one optimizer if a gradient or the loss is not finite.

    An optimizer with loss scaling skips infinite gradients itself and lowers its scale. Its updates
    are neither skipped nor counted here; `hopeless` tells when lowering the scale does not help.

    Args:
        optimizer: A Keras optimizer, distributed or not.
        thorough: Whether to check every gradient, or only those of at most 65,536 elements.

    Attributes:
        left_out: Number of skipped updates, an int64 variable, equal on all ranks.
        suspects: For each gradient of the last skipped update, whether it was not finite.
        watched: The variables of the gradients in `suspects`.
    """

    def __init__(self, optimizer: Any, thorough: bool) -> None:
        self._optimizer = optimizer
        self._thorough = thorough
        self._scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        # In a distributed optimizer, the method that runs after the reduction.
        self._method = "_update" if hasattr(type(optimizer), "_update") else "apply"
        with tf.init_scope(), tf.device("CPU:0"):
            self.left_out = tf.Variable(0, trainable=False, dtype=tf.int64)
            self.suspects = tf.Variable([], False, shape=[None], dtype=tf.bool)
        self.watched: list[Any] = []

    def attach(self) -> None:
        """Guards every update traced or run eagerly from now on. May be called repeatedly."""
        # Bypasses Keras' __setattr__, which tracks state.
        object.__setattr__(self._optimizer, self._method, self._update)

    def detach(self) -> None:
        """Restores the optimizer; graphs traced in between stay guarded."""
        vars(self._optimizer).pop(self._method, None)

    @property
    def hopeless(self) -> str | None:
        """Why lowering the loss scale no longer helps; None while it may help."""
        if not self._scales or not self._optimizer.built:
            return None
        scale, start = float(self._optimizer.dynamic_scale), self._optimizer.initial_scale
        if scale > start * 0.5**_HALVINGS:
            return None
        return f"the gradients overflow at every loss scale from {start:g} down to {scale:g}"

    @contextmanager
    def keeping(
        self, variables: Sequence[Any], then: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Context that restores `variables` and calls `then` if the update inside it is skipped.

        For moving statistics and metrics, which the forward pass updates before the check.
        """
        saved = [v for v in variables if tf.as_dtype(v.dtype).is_floating]
        before = [tf.convert_to_tensor(v) for v in saved]
        count = self.left_out.read_value()
        yield

        def restore() -> None:
            for variable, value in zip(saved, before, strict=True):
                variable.assign(value)
            then()

        tf.cond(self.left_out.read_value() > count, restore, lambda: None)

    def _update(
        self, gradients: Sequence[Gradient], trainable_variables: Sequence[Any] | None = None
    ) -> None:
        optimizer = self._optimizer
        update = getattr(type(optimizer), self._method)
        gradients = list(gradients)
        if self._scales:
            update(optimizer, gradients, trainable_variables)
            return
        if trainable_variables is None:
            trainable_variables = optimizer._trainable_variables
        variables = list(trainable_variables)
        if not optimizer.built:  # a tf.cond cannot create variables
            optimizer.build(variables)
            optimizer.built = True
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        self.watched = [v for g, v in pairs if self._thorough or _size(g) <= _SMALL]
        sums = [_sum(g) for g, v in pairs if self._thorough or _size(g) <= _SMALL]
        finite = tf.math.is_finite(tf.stack(sums)) if sums else tf.constant([True])

        def leave_out() -> None:
            self.suspects.assign(tf.logical_not(finite))
            self.left_out.assign_add(1)

        tf.cond(
            tf.reduce_all(finite),
            lambda: update(optimizer, gradients, variables),
            leave_out,
        )


def with_defect(gradients: Sequence[Gradient], loss: tf.Tensor) -> list[Gradient]:
    """The gradients, with NaN in one of them if the loss of this rank is not finite.

    The reduction of gradients then informs the other ranks.
    """
    gradients = list(gradients)
    present = [index for index, gradient in enumerate(gradients) if gradient is not None]
    if present:
        smallest = min(present, key=lambda index: _size(gradients[index]))
        gradient = tf.convert_to_tensor(gradients[smallest])
        # loss − loss is 0 for a finite loss, otherwise NaN.
        gradients[smallest] = gradient + tf.cast(loss - loss, gradient.dtype)
    return gradients


def all_finite(tensors: Sequence[Any]) -> tf.Tensor:
    """Whether all elements of all floating-point tensors are finite: a bool scalar."""
    sums = [_sum(t) for t in tensors if tf.as_dtype(t.dtype).is_floating]
    return tf.reduce_all(tf.math.is_finite(tf.stack(sums))) if sums else tf.constant(True)


def _sum(gradient: Any) -> tf.Tensor:
    """A float32 scalar that is finite only if every element is; one pass, no temporary tensor."""
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    if tf.as_dtype(values.dtype).size < 4:
        values = tf.cast(values, tf.float32)  # a sum in half precision may overflow
    return tf.cast(tf.reduce_sum(values), tf.float32)


def _size(gradient: Gradient) -> int:
    """Number of elements; a very large number if the shape is unknown."""
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    return int(values.shape.num_elements() or 1 << 62) if values is not None else 1 << 62
