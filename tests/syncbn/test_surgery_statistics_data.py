"""Data sets for recomputed statistics: all forms, and failures during a pass.

test_matrix_two_ranks.py tests them on ranks.
"""

from collections.abc import Callable, Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import recompute_statistics
from tests.syncbn.perceptron import assert_recomputed, perceptron, rows, statistics

L = keras.layers


class Halves(keras.utils.PyDataset):
    def __init__(self, inputs: np.ndarray) -> None:
        super().__init__()
        self.inputs = inputs

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        half = len(self.inputs) // 2
        return self.inputs[index * half : (index + 1) * half], np.zeros(half)


def test_result_does_not_depend_on_how_the_data_come() -> None:
    inputs = rows(60)
    dataset = tf.data.Dataset.from_tensor_slices(inputs)
    ways = [
        inputs,
        tf.constant(inputs),
        [inputs],
        [inputs[:1], inputs[1:7], inputs[7:]],
        [(inputs[:30], None), (inputs[30:], None, None)],
        dataset.batch(11),
        tf.data.Dataset.zip((dataset, dataset)).batch(60),
        Halves(inputs),
    ]
    found = [statistics(recompute_statistics(perceptron(), way)) for way in ways]
    for other in found[1:]:
        for path, value in other.items():
            np.testing.assert_allclose(value, found[0][path], 1e-6, 1e-6)


def test_steps_end_every_pass() -> None:
    inputs = rows(60)
    endless = tf.data.Dataset.from_tensor_slices(inputs).batch(20).repeat()
    model = recompute_statistics(perceptron(), endless, steps=2)
    assert_recomputed(model, inputs[:40])


def test_failing_pass_leaves_everything_as_it_was() -> None:
    model = perceptron()
    before = [v.numpy() for v in model.weights]
    passes = 0

    class Fragile:
        def __iter__(self) -> Iterator[np.ndarray]:
            nonlocal passes
            passes += 1
            yield rows(4)
            if passes == 3:  # the order, the first layer, the second
                raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        recompute_statistics(model, Fragile())
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, model.weights, strict=True))
    assert "call" not in vars(model.get_layer("first"))


def generator() -> Iterator[np.ndarray]:
    yield rows(4)


@pytest.mark.parametrize(
    ("model", "dataset", "steps", "message"),
    [
        (perceptron, generator, None, "must be readable several times, .* Received: generator"),
        (perceptron, lambda: 3, None, "must be readable several times, .* Received: int"),
        (
            perceptron,
            lambda: tf.data.Dataset.from_tensors(rows(4)).repeat(),
            None,
            "dataset is infinite: set steps",
        ),
        (perceptron, lambda: [rows(4)], 0, "steps must be a positive integer or None. .*steps=0"),
        (perceptron, lambda: [], None, "at least one batch on some rank. Received: none"),
        (lambda: L.Dense(1), lambda: [rows(4)], None, "expects a keras.Model. Received: Dense"),
        (
            lambda: keras.Sequential([L.BatchNormalization(name="b")], name="s"),
            lambda: [rows(4)],
            None,
            "model 's', of which b is not built",
        ),
    ],
)
def test_bad_input_is_named(
    model: Callable[[], object], dataset: Callable[[], object], steps: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recompute_statistics(model(), dataset(), steps=steps)
