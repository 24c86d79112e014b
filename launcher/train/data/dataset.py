"""What the loop asks of data: examples that are read by number, a training and a test part."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from launcher.errors import UsageError
from launcher.train.data.order import epoch_order


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
