"""Accumulates gradients of several backward passes on each rank before one reduction."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


class GradientAccumulator:
    """Sums of gradients over backward passes.

    Args:
        variables: The variables whose gradients are accumulated.
        add_variable: Creates a variable of zeros from shape, dtype and name. With the method of an
            optimizer, the sums are saved with it.
    """

    def __init__(self, variables: Sequence[Any], add_variable: Callable[..., Any]) -> None:
        self._sums = [
            add_variable(v.shape, dtype=v.dtype, name=f"pass_sum_{index}")
            for index, v in enumerate(variables)
        ]
        self._presence = add_variable((len(variables),), dtype="float32", name="pass_presence")
        self._weight = add_variable((), dtype="float32", name="pass_weight")
        self._count = add_variable((), dtype="int32", name="pass_count")

    def add(
        self,
        gradients: Sequence[tf.Tensor],
        indices: Sequence[int],
        presence: tf.Tensor,
        weight: tf.Tensor,
    ) -> tf.Tensor:
        """Adds the gradients of one pass.

        Args:
            gradients: Dense, one for each of `indices`.
            indices: Indices of their variables.
            presence: float32, 1 for each gradient that exists on this rank.
            weight: float32 scalar, the weight of the pass.

        Returns:
            The number of passes added, an int32 scalar.
        """
        for index, gradient in zip(indices, gradients, strict=True):
            self._sums[index].assign_add(gradient)
        self._presence.assign(tf.maximum(tf.convert_to_tensor(self._presence), presence))
        self._weight.assign_add(weight)
        self._count.assign_add(1)
        return tf.convert_to_tensor(self._count)

    def apply(
        self,
        indices: Sequence[int],
        step: Callable[[list[tf.Tensor], tf.Tensor, tf.Tensor], None],
    ) -> None:
        """Calls `step(sums, presence, weight)` for the variables of `indices`, then resets."""
        states = [self._sums[index] for index in indices]
        states += [self._presence, self._weight]
        *sums, presence, weight = [tf.identity(tf.convert_to_tensor(state)) for state in states]
        step(sums, presence, weight)
        for state in (*states, self._count):
            state.assign(tf.zeros_like(tf.convert_to_tensor(state)))
