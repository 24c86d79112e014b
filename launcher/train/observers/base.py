"""The seam between the loop and whoever watches it: progress bar, journal, heartbeat, metrics.

The loop calls every observer on every rank; each decides what its rank shows.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError
from launcher.heartbeat import Heartbeat

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStarted:
    """What is known before the first step.

    `notes` are lines for people; `kernels` says what computes the statistics of layers.
    """

    model: str
    dataset: str
    parameters: int
    rank: int
    world_size: int
    backend: str
    norm: str
    epochs: int
    epoch: int
    step: int
    steps_per_epoch: int
    output: Path
    notes: tuple[str, ...] = ()
    kernels: str = ""


@dataclass(frozen=True)
class StepDone:
    """One optimizer step over all ranks; `rows` is the global batch, `loss` its mean.

    `rows_here` is this rank's share of it, and `input_seconds` what the rank waited for it, which
    is part of `seconds`.
    """

    epoch: int
    step: int
    loss: float
    accuracy: float
    rows: int
    learning_rate: float
    seconds: float
    rows_here: int
    input_seconds: float


@dataclass(frozen=True)
class WindowDone:
    """Some steps as all ranks saw them, the same on every rank.

    Attributes:
        epoch: Of the last of them.
        step: The last of them.
        steps: How many.
        ranks: Measure to one number for each rank; times are sums in seconds.
        all_reduces: Kind to how many, over all ranks, fell into each of ALL_REDUCE_BUCKETS.
        bytes: Kind to the bytes all ranks have sent.
    """

    epoch: int
    step: int
    steps: int
    ranks: dict[str, list[float]]
    all_reduces: dict[str, list[int]]
    bytes: dict[str, int]


@dataclass(frozen=True)
class SaveDone:
    """One checkpoint written."""

    step: int
    path: Path
    seconds: float


@dataclass(frozen=True)
class EpochDone:
    """One pass over the training part, with the evaluation if there was one."""

    epoch: int
    step: int
    loss: float
    accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    images_per_second: float
    seconds: float


class Observer:
    """Does nothing; observers override what they care about.

    Attributes:
        what: Its name in the warning when it fails.
        essential: Whether its failure is the job's, as that of a collective is.
    """

    what = "an observer"
    essential = False

    def on_start(self, run: RunStarted) -> None:
        """Before the first step."""

    def on_step(self, step: StepDone) -> None:
        """After every optimizer step."""

    def on_window(self, window: WindowDone) -> None:
        """After some steps, once all ranks have told how they went."""

    def on_evaluation(self, step: int) -> None:
        """Before the held-out part is evaluated."""

    def on_save(self, step: int) -> None:
        """Before a checkpoint is written."""

    def on_saved(self, save: SaveDone) -> None:
        """After a checkpoint was written, on the rank that wrote it."""

    def on_epoch(self, epoch: EpochDone) -> None:
        """After every epoch."""

    def on_end(self, summary: dict[str, Any]) -> None:
        """After the last step, or the one at which the run was stopped."""


class Observers(Observer):
    """Several observers as one. One that fails is left out from then on, and training goes on."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        self._observers.append(observer)

    def on_start(self, run: RunStarted) -> None:
        self._tell(lambda observer: observer.on_start(run))

    def on_step(self, step: StepDone) -> None:
        self._tell(lambda observer: observer.on_step(step))

    def on_window(self, window: WindowDone) -> None:
        self._tell(lambda observer: observer.on_window(window))

    def on_evaluation(self, step: int) -> None:
        self._tell(lambda observer: observer.on_evaluation(step))

    def on_save(self, step: int) -> None:
        self._tell(lambda observer: observer.on_save(step))

    def on_saved(self, save: SaveDone) -> None:
        self._tell(lambda observer: observer.on_saved(save))

    def on_epoch(self, epoch: EpochDone) -> None:
        self._tell(lambda observer: observer.on_epoch(epoch))

    def on_end(self, summary: dict[str, Any]) -> None:
        self._tell(lambda observer: observer.on_end(summary))

    def _tell(self, call: Callable[[Observer], None]) -> None:
        for observer in list(self._observers):
            try:
                call(observer)
            except Exception as error:
                if observer.essential:
                    raise
                self._observers.remove(observer)
                ours = isinstance(error, LauncherError)
                text = str(error) if ours else f"{type(error).__name__}: {error}"
                reason = text.partition("\n")[0]  # TensorFlow's errors go on
                warn(f"{observer.what} is off from here on: {reason}")
                _log.debug("an observer failed", exc_info=error)


def warn(text: str) -> None:
    """One line on stderr and in the rank's log about something that training can do without."""
    print(f"launcher.train: {text}; training goes on", file=sys.stderr, flush=True)
    _log.info("warning: %s; training goes on", text)


class HeartbeatObserver(Observer):
    """Tells a supervisor that this rank moves."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat

    def on_start(self, run: RunStarted) -> None:
        self._heartbeat.beat("training", step=run.step)

    def on_step(self, step: StepDone) -> None:
        self._heartbeat.beat(
            "training",
            step=step.step,
            epoch=step.epoch,
            loss=step.loss,
            images_per_second=step.rows / step.seconds,
        )

    def on_evaluation(self, step: int) -> None:
        self._heartbeat.beat("evaluating", step=step)

    def on_save(self, step: int) -> None:
        self._heartbeat.beat("saving", step=step)

    def on_end(self, summary: dict[str, Any]) -> None:
        if summary["failure"] is None:
            self._heartbeat.beat("done", step=summary["steps"])
