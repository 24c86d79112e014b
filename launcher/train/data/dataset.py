"""The interface of a data set: examples read by number, in a training and a test part."""

import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.errors import UsageError
from launcher.train.data.order import epoch_order

# A larger number of classes indicates an error in the labels.
_MAX_CLASSES = 1 << 24


class DataError(UsageError):
    """A file of the data set is missing or damaged; the message names file and record."""


class Examples(ABC):
    """Examples that are read by number."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (rows, *shape) float32 and labels (rows,) int32 of the given examples."""

    def in_epoch(self, seed: int, epoch: int) -> tuple["Examples", np.ndarray]:
        """The examples to read in one epoch and the order of their numbers, equal on all ranks."""
        return self, epoch_order(len(self), seed, epoch)


@dataclass(frozen=True)
class ArrayExamples(Examples):
    """Examples held in memory.

    Attributes:
        features: (examples, height, width, channels), any numeric dtype.
        labels: (examples,) integers.
        mean: Subtracted from the features.
        scale: Divides the result.
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
    """A subset of other examples."""

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
        name: The value of `--dataset`.
        train: The training examples.
        validation: The held-out examples.
        shape: Shape of the features of one example.
        classes: Number of classes.
        skipped: Number of unreadable records skipped.
    """

    name: str
    train: Examples
    validation: Examples
    shape: tuple[int, ...]
    classes: int
    skipped: int = 0


def check_labels(
    labels: np.ndarray, classes: int | None, source: str, first: int | None = 0
) -> None:
    """Refuses labels that are not class numbers, on which training silently learns nothing.

    Args:
        labels: (examples,), of any dtype.
        classes: Number of classes; None to accept any number.
        source: Source of the labels, for the error message.
        first: Number of the first example there; None if `source` names the example.

    Raises:
        DataError: Names the first bad label and its example.
    """
    labels = np.asarray(labels)
    limit = _MAX_CLASSES if classes is None else classes
    if labels.dtype.kind not in "iub" and not (labels.dtype.kind == "f" and _whole(labels).all()):
        raise DataError(
            f"{source}: expected integer labels. Received: {labels.dtype} labels, such as "
            f"{labels.ravel()[:3].tolist()}"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= limit))
    if len(bad):
        where = source if first is None else f"{source}, example {first + bad[0]}"
        raise DataError(
            f"{where}: expected a label from 0 to {limit - 1}. Received: {labels[bad[0]]}"
        )


def _whole(labels: np.ndarray) -> np.ndarray:
    return np.isfinite(labels) & (labels == np.floor(labels))


def read_regular(path: Path) -> bytes:
    """The content of a regular file; opening a pipe or a device may block forever.

    Raises:
        OSError: It cannot be read.
        DataError: It is not a regular file.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a directory raises an OSError
        raise DataError(f"{path} is not a regular file (a pipe, socket or device)")
    return path.read_bytes()


def hold_out(count: int, part: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training and the held-out examples, independent of the seed of the run."""
    order = np.random.default_rng(0).permutation(count)
    held = max(1, round(count * part))
    return order[held:], order[:held]


def standardized(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    classes: int,
) -> DataSet:
    """A data set of arrays, standardized by the mean and deviation of its training part."""
    pixels = train[0]
    mean, scale = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64)) or 1.0
    return DataSet(
        name,
        ArrayExamples(*train, mean, scale),
        ArrayExamples(*validation, mean, scale),
        pixels.shape[1:],
        classes,
    )
