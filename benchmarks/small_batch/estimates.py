"""Means with confidence intervals, and the verdict on each setting: does synchronizing help?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t as student

from benchmarks.small_batch.plan import Norm, Result, Sharding

Quantity = Callable[[Result], float]
Verdict = Literal["helps", "no difference", "hurts"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds in percentage points, and half of its 95% confidence interval."""

    mean: float
    half: float

    @property
    def verdict(self) -> Verdict:
        """For a difference: on which side of the interval zero lies, if outside."""
        if abs(self.mean) <= self.half:
            return "no difference"
        return "helps" if self.mean > 0 else "hurts"


def accuracy(result: Result) -> float:
    return 100.0 * result.test_accuracy


def recomputed_accuracy(result: Result) -> float:
    return 100.0 * result.recomputed_accuracy


def gap(result: Result) -> float:
    """Training accuracy less test accuracy."""
    return 100.0 * (result.train_accuracy - result.test_accuracy)


@dataclass(frozen=True)
class Table:
    """Estimates from the results of a study.

    Attributes:
        results: All results of a complete study.
    """

    results: Sequence[Result]

    def estimate(
        self, quantity: Quantity, sharding: Sharding, world: int, batch: int, norm: Norm
    ) -> Estimate:
        return _estimate(self._values(quantity, sharding, world, batch, norm))

    def gain(
        self,
        sharding: Sharding,
        world: int,
        batch: int,
        quantity: Quantity = accuracy,
        other: Norm = "local",
    ) -> Estimate:
        """The difference between synchronized and another norm, paired by seed."""
        sync = self._values(quantity, sharding, world, batch, "sync")
        return _estimate(sync - self._values(quantity, sharding, world, batch, other))

    def _values(
        self, quantity: Quantity, sharding: Sharding, world: int, batch: int, norm: Norm
    ) -> np.ndarray:
        chosen = [
            result
            for result in self.results
            if (result.sharding, result.world, result.batch, result.norm)
            == (sharding, world, batch, norm)
        ]
        return np.array([quantity(r) for r in sorted(chosen, key=lambda r: r.seed)])


def _estimate(values: np.ndarray) -> Estimate:
    count = len(values)
    if count < 2:
        return Estimate(float(values.mean()), float("inf"))
    half = student.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)
    return Estimate(float(values.mean()), float(half))
