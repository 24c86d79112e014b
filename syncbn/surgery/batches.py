"""Repeated iteration over the inputs of a data set."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_ROWS = 128  # batch size for arrays


def repeatable(dataset: Any, steps: int | None) -> Callable[[], Iterator[Any]]:
    """A function that returns a new iterator over the inputs x, of at most `steps` batches.

    Raises:
        ValueError: `steps` is not positive, or the data set is endless or not repeatable.
    """
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps must be a positive integer or None. Received: steps={steps!r}")
    if isinstance(dataset, np.ndarray) or tf.is_tensor(dataset):
        dataset = tf.data.Dataset.from_tensor_slices(dataset).batch(_ROWS)
    if isinstance(dataset, keras.utils.PyDataset):
        endless = dataset.num_batches is None
        source: Iterable[Any] = _PyDatasetBatches(dataset)
    else:
        endless = isinstance(dataset, tf.data.Dataset) and bool(
            dataset.cardinality() == tf.data.INFINITE_CARDINALITY
        )
        source = dataset
    if not isinstance(source, Iterable) or iter(source) is source:
        raise ValueError(
            "dataset must be readable several times, like a tf.data.Dataset or a list of "
            f"batches. Received: {type(dataset).__name__}"
        )
    if endless and steps is None:
        raise ValueError("dataset is infinite: set steps. Received: steps=None")

    def begin() -> Iterator[Any]:
        for number, batch in enumerate(source):
            if number == steps:
                return
            yield keras.utils.unpack_x_y_sample_weight(batch)[0]

    return begin


class _PyDatasetBatches:
    def __init__(self, dataset: keras.utils.PyDataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        number = 0
        while self._dataset.num_batches is None or number < self._dataset.num_batches:
            yield self._dataset[number]
            number += 1
