"""The user's `package.module:function` that returns a `tf.data.Dataset`, or a training and a
held-out one, of (features, label) pairs that are not batched."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from launcher.errors import UsageError
from launcher.train.config import TrainConfig
from launcher.train.data.dataset import DataError, DataSet, Examples, check_labels
from launcher.train.import_path import load_function

# A wider shuffle would hold more examples in memory than this.
_MOST_SHUFFLED = 10_000


class StreamExamples(Examples):
    """Examples that come one after the other and are never all in memory.

    Every rank reads the whole stream, in the same shuffled order, and keeps its own. Numbers are
    places in that order, so they must be asked for in rising order.

    Args:
        dataset: Unbatched pairs; deterministic, and the same on every rank.
        count: How many there are.
        place: Of the user's function, for errors.
    """

    def __init__(self, dataset: Any, count: int, place: str) -> None:
        self._dataset, self._count, self._place = dataset, count, place
        self._next = 0
        self._iterator: Iterator[tuple[np.ndarray, np.ndarray]] | None = None

    def __len__(self) -> int:
        return self._count

    def in_epoch(self, seed: int, epoch: int) -> tuple[Examples, np.ndarray]:
        buffer = min(self._count, _MOST_SHUFFLED)
        seeds = np.random.default_rng([seed, epoch]).integers(2**31)
        shuffled = self._dataset.shuffle(buffer, seed=int(seeds), reshuffle_each_iteration=False)
        return StreamExamples(shuffled, self._count, self._place), np.arange(self._count)

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
            raise DataError(f"{self._place}: it ended before example {index}") from None
        except tf.errors.OpError as error:
            what = str(error.message).splitlines()[0]
            raise DataError(f"{self._place}, example {self._next}: {what}") from error


def load(config: TrainConfig) -> DataSet:
    """Calls the user's function without arguments.

    Raises:
        UsageError: It cannot be imported, fails, or returns something else.
    """
    place = f"--dataset {config.dataset}"
    function = load_function("--dataset", config.dataset)
    try:
        returned = function()
    except Exception as error:
        raise UsageError(f"{place} failed ({type(error).__name__}: {error})") from error
    parts = returned if isinstance(returned, tuple) else (returned, None)
    if len(parts) != 2 or not all(isinstance(p, tf.data.Dataset) or p is None for p in parts):
        raise UsageError(
            f"{place}: expected a tf.data.Dataset, or one for training and one held out. "
            f"Received: {returned!r}"
        )
    train, held = parts
    _check_pairs(train, place)
    if config.skip_bad_records:
        whole = _count(train, place)
        train = train.ignore_errors()
        held = None if held is None else held.ignore_errors()
    count, classes = _count_and_classes(train, place)
    skipped = whole - count if config.skip_bad_records and whole >= 0 else 0
    if held is None:
        out = max(1, round(count * config.validation_part))
        train, held, count = train.skip(out), train.take(out), count - out
    held_count, held_classes = _count_and_classes(held, f"{place}, held out")
    return DataSet(
        config.dataset,
        StreamExamples(train, count, place),
        StreamExamples(held, held_count, place),
        tuple(train.element_spec[0].shape),
        max(classes, held_classes),  # as of every other kind of data
        skipped,
    )


def _check_pairs(dataset: Any, place: str) -> None:
    spec = dataset.element_spec
    sound = isinstance(spec, tuple) and len(spec) == 2
    if not sound or not spec[0].shape.is_fully_defined() or spec[1].shape != []:
        raise UsageError(
            f"{place}: expected single (features, label) pairs with a known shape of the features "
            f"and whole-number labels, not batches. Received: {spec}"
        )


def _count(dataset: Any, place: str) -> int:
    """What the data set says of its own length; −1 if it does not know."""
    known = int(dataset.cardinality())
    if known == tf.data.INFINITE_CARDINALITY:
        raise UsageError(f"{place}: the data set never ends; an epoch must be finite")
    return known if known >= 0 else -1


def _count_and_classes(dataset: Any, place: str) -> tuple[int, int]:
    """Goes through the data once."""
    _count(dataset, place)
    count, largest = 0, 0
    try:
        for _, label in dataset.as_numpy_iterator():
            check_labels(np.reshape(label, 1), None, place, first=count)
            count, largest = count + 1, max(largest, int(label))
    except tf.errors.OpError as error:
        what = str(error.message).splitlines()[0]
        raise DataError(
            f"{place}, example {count}: {what}; --skip-bad-records leaves it out"
        ) from error
    if count == 0:
        raise UsageError(f"{place}: the data set is empty")
    return count, largest + 1
