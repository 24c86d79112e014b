"""What the loop asks of data: examples that are read by number, a training and a test part."""

import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.errors import UsageError
from launcher.train.data.order import epoch_order

# More output units than this are a mistake in the labels.
_MOST_CLASSES = 1 << 24


class DataError(UsageError):
    """A file of the data set is missing or damaged; the text names file and record."""


class Examples(ABC):
    """Examples that can be read by number."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (rows, *shape) float32 and labels (rows,) int32 of the examples named."""

    def in_epoch(self, seed: int, epoch: int) -> tuple["Examples", np.ndarray]:
        """What to read from in one epoch, and the order of its numbers, equal on all ranks."""
        return self, epoch_order(len(self), seed, epoch)


@dataclass(frozen=True)
class ArrayExamples(Examples):
    """Examples held in memory.

    Attributes:
        features: (examples, height, width, channels), any numeric dtype.
        labels: (examples,) whole numbers.
        mean: Subtracted from the features.
        scale: Divides the features then.
    """

    features: np.ndarray
    labels: np.ndarray
    mean: float = 0.0
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = self.features[indices].astype(np.float32)
        return (features - self.mean) / self.scale, self.labels[indices].astype(np.int32)


@dataclass(frozen=True)
class Part(Examples):
    """Some of another's examples."""

    whole: Examples
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.whole.read(self.numbers[indices])


@dataclass(frozen=True)
class DataSet:
    """A data set ready for training.

    Attributes:
        name: As the user asked for it.
        train: The examples to learn from.
        validation: The held-out examples.
        shape: Shape of one example's features.
        classes: Number of labels.
        skipped: Unreadable records left out.
    """

    name: str
    train: Examples
    validation: Examples
    shape: tuple[int, ...]
    classes: int
    skipped: int = 0


def check_labels(
    labels: np.ndarray, classes: int | None, place: str, first: int | None = 0
) -> None:
    """Refuses labels that are no class: training on them teaches nothing, and says nothing.

    Args:
        labels: (examples,), of any dtype.
        classes: How many there are; None for as many as the labels name.
        place: Where the labels stand, for the error.
        first: The number of the first one there; None where the place says it.

    Raises:
        DataError: Names the first bad label and its example.
    """
    labels = np.asarray(labels)
    limit = _MOST_CLASSES if classes is None else classes
    if labels.dtype.kind not in "iub" and not (labels.dtype.kind == "f" and _whole(labels).all()):
        raise DataError(
            f"{place}: expected whole numbers as labels. Received: {labels.dtype} labels, such as "
            f"{labels.ravel()[:3].tolist()}"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= limit))
    if len(bad):
        where = place if first is None else f"{place}, example {first + bad[0]}"
        raise DataError(
            f"{where}: expected a label from 0 to {limit - 1}. Received: {labels[bad[0]]}"
        )


def _whole(labels: np.ndarray) -> np.ndarray:
    return np.isfinite(labels) & (labels == np.floor(labels))


def read_regular(path: Path) -> bytes:
    """The content of a file, which must be one: to open a pipe or a device may wait for ever.

    Raises:
        OSError: It cannot be read.
        DataError: It is something else than a file.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a directory fails by itself
        raise DataError(f"{path} is no regular file (a pipe, socket or device)")
    return path.read_bytes()


def hold_out(count: int, part: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training and the held-out examples, the same whatever the run's seed."""
    order = np.random.default_rng(0).permutation(count)
    held = max(1, round(count * part))
    return order[held:], order[:held]


def standardized(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    classes: int,
) -> DataSet:
    """A data set of arrays brought to mean 0 and deviation 1 by its training part."""
    pixels = train[0]
    mean, scale = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64)) or 1.0
    return DataSet(
        name,
        ArrayExamples(*train, mean, scale),
        ArrayExamples(*validation, mean, scale),
        pixels.shape[1:],
        classes,
    )
