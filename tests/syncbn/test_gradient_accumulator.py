"""Accumulation of gradients over passes: the sums are applied once, then reset."""

from typing import Any

import pytest
import tensorflow as tf

from syncbn.gradient_accumulator import GradientAccumulator


def _zeros(shape: Any, dtype: str, name: str) -> tf.Variable:
    return tf.Variable(tf.zeros(shape, dtype), trainable=False, name=name)


def test_sums_are_applied_once_and_reset() -> None:
    sums = GradientAccumulator([tf.Variable([0.0, 0.0]), tf.Variable(0.0)], _zeros)
    seen: list[tuple[Any, ...]] = []

    def step(totals: list[tf.Tensor], presence: tf.Tensor, weight: tf.Tensor) -> None:
        values = [total.numpy().tolist() for total in totals]
        seen.append((values, presence.numpy().tolist(), float(weight)))

    for passes in range(2):
        gradients = [tf.constant([1.0, 2.0]), tf.constant(0.0)]
        count = sums.add(gradients, [0, 1], tf.constant([1.0, 0.0]), tf.constant(3.0))
        assert int(count) == passes + 1
    sums.apply([0, 1], step)
    sums.apply([0, 1], step)
    assert seen == [([[2.0, 4.0], 0.0], [1.0, 0.0], 6.0), ([[0.0, 0.0], 0.0], [0.0, 0.0], 0.0)]


def test_a_gradient_too_few_is_an_error() -> None:
    sums = GradientAccumulator([tf.Variable(0.0), tf.Variable(0.0)], _zeros)
    with pytest.raises(ValueError, match="zip"):
        sums.add([tf.constant(1.0)], [0, 1], tf.constant([1.0, 1.0]), tf.constant(1.0))
