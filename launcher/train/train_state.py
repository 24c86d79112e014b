"""The state of the training loop besides variables: progress, step times, and outcome."""

import math
import statistics
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass
class TrainState:
    """How far a run has progressed; part of every checkpoint.

    Attributes:
        epoch: The current epoch, from 0.
        consumed: Samples of the epoch that all ranks together have used.
        step: Optimizer steps since the start of the run.
        sums: Σ loss, Σ correct and rows over the epoch so far and all ranks.
        best_loss: The lowest held-out loss so far.
        evaluations_since_best: Number of evaluations after that one.
        skipped: Steps whose update was skipped because it was not finite.
        skipped_in_a_row: How many of the latest steps were skipped in succession.
    """

    epoch: int = 0
    consumed: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    best_loss: float | None = None
    evaluations_since_best: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def __post_init__(self) -> None:
        # JSON has no NaN, which a run with --on-nan ignore may have in its sums.
        self.sums = [math.nan if number is None else number for number in self.sums]

    def record_evaluation(self, held_out_loss: float) -> None:
        """Updates what early stopping needs."""
        best = math.inf if self.best_loss is None else self.best_loss
        if held_out_loss < best:
            self.best_loss, self.evaluations_since_best = held_out_loss, 0
        else:
            self.evaluations_since_best += 1


class StepTimes:
    """Durations of steps, except the first one of the process, which includes compilation."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._rows = 0
        self._compiled = False

    def add(self, seconds: float, rows: int) -> None:
        """Adds one step of `rows` over all ranks."""
        if self._compiled:
            self._seconds.append(seconds)
            self._rows += rows
        self._compiled = True

    @property
    def images_per_second(self) -> float:
        """Throughput over all ranks."""
        return self._rows / sum(self._seconds) if self._seconds else 0.0

    @property
    def median_seconds(self) -> float | None:
        """Median duration of a step; None before the second."""
        return statistics.median(self._seconds) if self._seconds else None


class Evaluation(NamedTuple):
    """The result of an evaluation on the held-out part.

    Attributes:
        loss: Mean over all ranks.
        accuracy: Mean over all ranks.
        read_nan: Whether this rank has read NaN in the data.
    """

    loss: float
    accuracy: float
    read_nan: bool


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        stopped: Whether SIGTERM stopped it before the last epoch.
        stopped_early: Whether the held-out loss no longer fell.
        evaluation: The last evaluation.
        train_loss: Mean loss of the last complete epoch of this process.
    """

    stopped: bool = False
    stopped_early: bool = False
    evaluation: Evaluation | None = None
    train_loss: float | None = None
