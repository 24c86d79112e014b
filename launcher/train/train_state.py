"""Where a run stands, how fast it went, and how it ended: the loop's plain data."""

import math
import statistics
from dataclasses import dataclass, field


@dataclass
class Position:
    """Where the run stands: part of every checkpoint.

    Attributes:
        epoch: The epoch we are in, from 0.
        consumed: Samples of it that all ranks together have used.
        step: Optimizer steps since the start of the run.
        sums: Σ loss, Σ correct and rows over the epoch so far, all ranks.
        best_loss: The lowest held-out loss so far.
        evaluations_since_best: Evaluations after that one.
        skipped: Steps whose update was left out because it was not finite.
        skipped_in_a_row: The newest of them.
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
        # JSON has no NaN, and a run that ignores it has one here.
        self.sums = [math.nan if number is None else number for number in self.sums]

    def note(self, held_out_loss: float) -> None:
        """Takes note of an evaluation, for early stopping."""
        best = math.inf if self.best_loss is None else self.best_loss
        if held_out_loss < best:
            self.best_loss, self.evaluations_since_best = held_out_loss, 0
        else:
            self.evaluations_since_best += 1


class StepTimes:
    """Durations of steps, without the first one of the process, which is compiled."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._rows = 0
        self._compiled = False

    def add(self, seconds: float, rows: int) -> None:
        """Takes note of one step of `rows` over all ranks."""
        if self._compiled:
            self._seconds.append(seconds)
            self._rows += rows
        self._compiled = True

    @property
    def images_per_second(self) -> float:
        """Over all ranks."""
        return self._rows / sum(self._seconds) if self._seconds else 0.0

    @property
    def median_seconds(self) -> float | None:
        """Of a step; None before the second."""
        return statistics.median(self._seconds) if self._seconds else None


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        times: Of this process' steps.
        stopped: By SIGTERM, before its last epoch.
        stopped_early: Because the held-out loss no longer fell.
        validation: Loss and accuracy of the last evaluation.
        train_loss: Mean over the last whole epoch of this process.
    """

    times: StepTimes
    stopped: bool = False
    stopped_early: bool = False
    validation: tuple[float, float] | None = None
    train_loss: float | None = None
