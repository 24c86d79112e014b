"""Gradients of several backward passes, added up on each rank before one reduction over all."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


class PassSums:
    """Sums over backward passes, kept in variables of the optimizer so that they are saved with it.

    Args:
        optimizer: The optimizer that owns the variables.
        variables: The variables whose gradients are added up.
        passes: Passes that make one step.
    """

    def __init__(
        self, optimizer: keras.optimizers.Optimizer, variables: Sequence[Any], passes: int
    ) -> None:
        add = optimizer.add_variable
        self._passes = passes
        self._sums = [
            add(v.shape, dtype=v.dtype, name=f"pass_sum_{index}")
            for index, v in enumerate(variables)
        ]
        self._presence = add((len(variables),), dtype="float32", name="pass_presence")
        self._weight = add((), dtype="float32", name="pass_weight")
        self._count = add((), dtype="int32", name="pass_count")

    def add(
        self,
        gradients: Sequence[tf.Tensor],
        indices: Sequence[int],
        presence: tf.Tensor,
        weight: tf.Tensor,
        step: Callable[[list[tf.Tensor], tf.Tensor, tf.Tensor], None],
    ) -> None:
        """Adds one pass; the last of `passes` calls `step(sums, presence, weight)` and starts anew.

        Args:
            gradients: Dense, one for each of `indices`.
            indices: Places of their variables among the optimizer's.
            presence: float32, 1 for each gradient that this rank really has.
            weight: float32 scalar, what the pass counts.
            step: Reduces over the ranks and applies.
        """
        sums = [self._sums[index] for index in indices]
        for total, gradient in zip(sums, gradients, strict=True):
            total.assign_add(gradient)
        self._presence.assign(tf.maximum(self._presence.value, presence))
        self._weight.assign_add(weight)
        self._count.assign_add(1)

        def complete() -> None:
            step([total.value for total in sums], self._presence.value, self._weight.value)
            for state in (*sums, self._presence, self._weight, self._count):
                state.assign(tf.zeros_like(state.value))

        tf.cond(tf.equal(self._count.value, self._passes), complete, lambda: None)
