"""Keeps NaN and infinities out of the weights: an update that would carry them in is left out.

The gradients are looked at after the ranks have summed them up. All ranks then hold the same
values, so that all leave out the same updates without another message. A loss that is not finite
on one rank travels in one of its gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from syncbn.gradients import Gradient

# To read all gradients of a large model once more takes milliseconds. What passes through a layer
# on the way back shows in its small gradients too (bias, gamma, beta).
_SMALL = 1 << 16

# A loss scale this far below its start comes of thirty halvings on end: no overflow needs so many.
_HALVINGS = 30


class UpdateGuard:
    """Leaves out the updates of one optimizer whose gradients, or whose loss, are not finite.

    Of an optimizer with loss scaling, which skips infinite gradients itself and then lowers its
    scale, nothing is left out or counted: `hopeless` says when that has ceased to help.

    Args:
        optimizer: A Keras optimizer, distributed or of a single process.
        thorough: Whether to look at every gradient, or only at those of at most 65,536 elements.

    Attributes:
        left_out: How many updates were left out, an int64 variable, equal on all ranks.
        suspects: For each gradient of the newest one left out, whether it was not finite.
    """

    def __init__(self, optimizer: Any, thorough: bool) -> None:
        self._optimizer = optimizer
        self._thorough = thorough
        self._scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        # Of a distributed optimizer the method behind the reduction.
        self._method = "_update" if hasattr(type(optimizer), "_update") else "apply"
        with tf.init_scope(), tf.device("CPU:0"):
            self.left_out = tf.Variable(0, trainable=False, dtype=tf.int64)
            self.suspects = tf.Variable([], False, shape=[None], dtype=tf.bool)
        self.watched: list[Any] = []

    def attach(self) -> None:
        """Guards every update that is traced, or run eagerly, from now on. May be called twice."""
        # Past the tracking of Keras' own __setattr__, which is for state.
        object.__setattr__(self._optimizer, self._method, self._update)

    def detach(self) -> None:
        """Leaves the optimizer as it was; graphs that were traced in between stay guarded."""
        vars(self._optimizer).pop(self._method, None)

    @property
    def hopeless(self) -> str | None:
        """Why loss scaling cannot get rid of the infinities any more; None as long as it may."""
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
        """When the update within is left out, gives `variables` their values back and calls `then`.

        For moving statistics and metrics, which the forward pass moves before anyone can tell.
        """
        kept = [v for v in variables if tf.as_dtype(v.dtype).is_floating]
        before = [tf.convert_to_tensor(v) for v in kept]
        count = self.left_out.read_value()
        yield

        def restore() -> None:
            for variable, value in zip(kept, before, strict=True):
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
        if not optimizer.built:  # within a tf.cond no variables can be made
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
    """The gradients, of which one is NaN where the loss of this rank is not finite.

    So the other ranks learn of it in the message they get anyway.
    """
    gradients = list(gradients)
    present = [index for index, gradient in enumerate(gradients) if gradient is not None]
    if present:
        smallest = min(present, key=lambda index: _size(gradients[index]))
        gradient = tf.convert_to_tensor(gradients[smallest])
        # 0 for every finite loss, NaN for all others.
        gradients[smallest] = gradient + tf.cast(loss - loss, gradient.dtype)
    return gradients


def all_finite(tensors: Sequence[Any]) -> tf.Tensor:
    """Whether no element of any floating-point tensor is NaN or infinite: a bool scalar."""
    sums = [_sum(t) for t in tensors if tf.as_dtype(t.dtype).is_floating]
    return tf.reduce_all(tf.math.is_finite(tf.stack(sums))) if sums else tf.constant(True)


def _sum(gradient: Any) -> tf.Tensor:
    """A float32 scalar that is finite only if every element is: one pass, and no second tensor."""
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    if tf.as_dtype(values.dtype).size < 4:
        values = tf.cast(values, tf.float32)  # a sum of halves overflows by itself
    return tf.cast(tf.reduce_sum(values), tf.float32)


def _size(gradient: Gradient) -> int:
    """Number of elements; of unknown shapes the largest there is."""
    values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    return int(values.shape.num_elements() or 1 << 62) if values is not None else 1 << 62
