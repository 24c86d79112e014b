"""The trainings of the study: combinations, learning rates, and the samples of each rank.

Independent of TensorFlow: the command, the training and the page use it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from launcher.train.data.order import epoch_order

Norm = Literal["sync", "local", "none"]
Sharding = Literal["shuffled", "by-class"]

NORMS: tuple[Norm, ...] = ("sync", "local", "none")
SHARDINGS: tuple[Sharding, ...] = ("shuffled", "by-class")

LARGEST_GLOBAL_BATCH = 256
MOMENTUM = 0.9
WARM_UP = 0.1


@dataclass(frozen=True)
class Plan:
    """The extent of the study.

    Attributes:
        worlds: Numbers of ranks.
        batches: Samples per rank and step.
        seeds: Number of seeds, from 0.
        samples: Number of samples of all ranks in one training, for every batch size; a multiple of
            every global batch.
        held_out: The fraction of the data used for testing only.
        peak_rate: The highest learning rate at the largest global batch.
    """

    worlds: tuple[int, ...] = (2, 4, 8)
    batches: tuple[int, ...] = (2, 4, 8, 16, 32)
    seeds: int = 5
    samples: int = 64 * LARGEST_GLOBAL_BATCH
    held_out: float = 0.75
    peak_rate: float = 0.1

    def groups(self) -> Iterator["Group"]:
        """All groups, those with the most steps first."""
        pairs = [(world, batch) for world in self.worlds for batch in self.batches]
        for world, batch in sorted(pairs, key=lambda pair: pair[0] * pair[1]):
            for norm in NORMS:
                yield Group(world, batch, norm)


@dataclass(frozen=True)
class Group:
    """Trainings with the same compiled graph, which differ in sharding and seed.

    Attributes:
        world: Number of ranks.
        batch: Samples per rank and step.
        norm: Batch normalization over all ranks, per rank, or none.
    """

    world: int
    batch: int
    norm: Norm

    @property
    def global_batch(self) -> int:
        return self.world * self.batch

    @property
    def momentum(self) -> float:
        """Of the moving statistics, so that they average over as many samples at every batch."""
        return MOMENTUM ** (self.global_batch / LARGEST_GLOBAL_BATCH)

    def runs(self, seeds: int) -> Iterator["Run"]:
        for sharding in SHARDINGS:
            for seed in range(seeds):
                yield Run(self.world, self.batch, self.norm, sharding, seed)


@dataclass(frozen=True)
class Run(Group):
    """One training.

    Attributes:
        sharding: Whether samples are drawn from all data, or each rank has a shard of data sorted
            by class.
        seed: Seed of the initial weights and the order of the samples.
    """

    sharding: Sharding
    seed: int


@dataclass(frozen=True)
class Result(Run):
    """The result of a training.

    Attributes:
        train_accuracy: Accuracy on the training part, 0 to 1, in inference mode.
        test_accuracy: Accuracy on the held-out part, likewise.
        recomputed_accuracy: Test accuracy with moving statistics recomputed over the whole training
            part; `test_accuracy` without batch normalization.
    """

    train_accuracy: float
    test_accuracy: float
    recomputed_accuracy: float


def learning_rates(plan: Plan, run: Group) -> np.ndarray:
    """The rate of every step, float32: warm-up, then cosine decay; peak proportional to batch."""
    steps = plan.samples // run.global_batch
    progress = (np.arange(steps) + 0.5) / steps
    peak = plan.peak_rate * run.global_batch / LARGEST_GLOBAL_BATCH
    falling = 0.5 * (1.0 + np.cos(np.pi * (progress - WARM_UP) / (1.0 - WARM_UP)))
    return (peak * np.where(progress < WARM_UP, progress / WARM_UP, falling)).astype(np.float32)


def sample_numbers(run: Run, labels: np.ndarray, samples: int) -> np.ndarray:
    """The training samples of each rank in each step, int32 (steps, world, batch).

    If shuffled, the samples of a step do not depend on the norm or the division of its global batch
    into ranks.
    """
    steps = samples // run.global_batch
    if run.sharding == "shuffled":
        stream = _epochs(len(labels), run.seed, samples)
        return stream.reshape(steps, run.world, run.batch)
    shards = np.array_split(np.argsort(labels, kind="stable"), run.world)
    streams = [shard[_epochs(len(shard), run.seed, samples // run.world)] for shard in shards]
    return np.stack([stream.reshape(steps, run.batch) for stream in streams], axis=1)


def _epochs(count: int, seed: int, length: int) -> np.ndarray:
    """The first `length` sample numbers over successive epochs, int32."""
    epochs = -(-length // count)
    stream = np.concatenate([epoch_order(count, seed, epoch) for epoch in range(epochs)])
    return stream[:length].astype(np.int32)
