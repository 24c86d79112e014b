"""Data from the user's `package.module:function`.

The function returns a `tf.data.Dataset` of unbatched (features, label) pairs, or a tuple of a
training and a held-out one.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from launcher.errors import UsageError
from launcher.train.data.dataset import DataError, DataSet, Examples, check_labels
from launcher.train.import_path import load_function

# The shuffle buffer holds at most this many examples in memory.
_SHUFFLE_BUFFER = 10_000


class StreamExamples(Examples):
    """Examples of a stream that need not fit in memory.

    Every rank reads the whole stream in the same shuffled order and keeps its share. Numbers are
    positions in that order and must be requested in ascending order.

    Args:
        dataset: Unbatched pairs; deterministic, and the same on every rank.
        count: Number of examples.
        source: Name of the user's function, for error messages.
    """

    def __init__(self, dataset: Any, count: int, source: str) -> None:
        self._dataset, self._count, self._source = dataset, count, source
        self._next = 0
        self._iterator: Iterator[tuple[np.ndarray, np.ndarray]] | None = None

    def __len__(self) -> int:
        return self._count

    def in_epoch(self, seed: int, epoch: int) -> tuple[Examples, np.ndarray]:
        buffer = min(self._count, _SHUFFLE_BUFFER)
        seeds = np.random.default_rng([seed, epoch]).integers(2**31)
        shuffled = self._dataset.shuffle(buffer, seed=int(seeds), reshuffle_each_iteration=False)
        return StreamExamples(shuffled, self._count, self._source), np.arange(self._count)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pairs = [self._at(int(index)) for index in indices]
        if not pairs:
            shape = self._dataset.element_spec[0].shape
            return np.zeros((0, *shape), np.float32), np.zeros(0, np.int32)
        features, labels = zip(*pairs, strict=True)
        return np.stack(features).astype(np.float32), np.asarray(labels, np.int32)

    def _at(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if self._iterator is None or index < self._next:
            self._iterator, self._next = iter(self._dataset.skip(index).as_numpy_iterator()), index
        try:
            while True:
                pair = next(self._iterator)
                self._next += 1
                if self._next > index:
                    return pair
        except StopIteration:
            raise DataError(f"{self._source}: the data set ended before example {index}") from None
        except tf.errors.OpError as error:
            what = str(error.message).splitlines()[0]
            raise DataError(f"{self._source}, example {self._next}: {what}") from error


def load(reference: str, validation_part: float, skip_bad_records: bool) -> DataSet:
    """Calls the user's function without arguments.

    Args:
        reference: `package.module:function`.
        validation_part: Fraction to hold out if the function returns a single data set.
        skip_bad_records: Whether to skip and count examples that raise an error.

    Raises:
        UsageError: It cannot be imported, fails, or returns something else.
    """
    source = f"--dataset {reference}"
    function = load_function("--dataset", reference)
    try:
        returned = function()
    except Exception as error:
        raise UsageError(f"{source} failed ({type(error).__name__}: {error})") from error
    parts = returned if isinstance(returned, tuple) else (returned, None)
    if len(parts) != 2 or not all(isinstance(p, tf.data.Dataset) or p is None for p in parts):
        raise UsageError(
            f"{source}: expected a tf.data.Dataset, or a training and a held-out one. "
            f"Received: {returned!r}"
        )
    train, held = parts
    _check_pairs(train, source)
    if skip_bad_records:
        whole = _count(train, source)
        train = train.ignore_errors()
        held = None if held is None else held.ignore_errors()
    count, classes = _count_and_classes(train, source)
    skipped = whole - count if skip_bad_records and whole >= 0 else 0
    if held is None:
        out = max(1, round(count * validation_part))
        train, held, count = train.skip(out), train.take(out), count - out
    held_count, held_classes = _count_and_classes(held, f"{source}, held out")
    return DataSet(
        reference,
        StreamExamples(train, count, source),
        StreamExamples(held, held_count, source),
        tuple(train.element_spec[0].shape),
        max(classes, held_classes),
        skipped,
    )


def _check_pairs(dataset: Any, source: str) -> None:
    spec = dataset.element_spec
    sound = isinstance(spec, tuple) and len(spec) == 2
    if not sound or not spec[0].shape.is_fully_defined() or spec[1].shape != []:
        raise UsageError(
            f"{source}: expected unbatched (features, label) pairs with features of known shape "
            f"and integer labels. Received: {spec}"
        )


def _count(dataset: Any, source: str) -> int:
    """The cardinality of the data set, -1 if unknown."""
    known = int(dataset.cardinality())
    if known == tf.data.INFINITE_CARDINALITY:
        raise UsageError(f"{source}: the data set is infinite; an epoch must be finite")
    return known if known >= 0 else -1


def _count_and_classes(dataset: Any, source: str) -> tuple[int, int]:
    """Counts examples and classes in one pass over the data."""
    _count(dataset, source)
    count, largest = 0, 0
    try:
        for _, label in dataset.as_numpy_iterator():
            check_labels(np.reshape(label, 1), None, source, first=count)
            count, largest = count + 1, max(largest, int(label))
    except tf.errors.OpError as error:
        what = str(error.message).splitlines()[0]
        raise DataError(
            f"{source}, example {count}: {what}; --skip-bad-records skips it"
        ) from error
    if count == 0:
        raise UsageError(f"{source}: the data set is empty")
    return count, largest + 1
