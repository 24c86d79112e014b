"""The interface between the training loop and its observers: progress, journal, metrics, ...

The loop calls every observer on every rank; each observer decides what its rank shows.
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
    """The run, before its first step.

    Attributes:
        notes: Messages for the user.
        kernels: The implementation that computes batch statistics.
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
    """One optimizer step over all ranks.

    Attributes:
        loss: Mean over the global batch.
        rows: Rows of the global batch.
        seconds: Duration of the step.
        rows_here: Rows of this rank.
        input_seconds: The part of `seconds` in which this rank waited for input.
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
    """Several consecutive steps with the measurements of all ranks, equal on every rank.

    Attributes:
        epoch: Epoch of the last step.
        step: The last step.
        steps: Number of steps.
        ranks: Maps a measurement to one number per rank; times are sums in seconds.
        all_reduces: Maps a kind of all-reduce to the counts in ALL_REDUCE_BUCKETS, over all ranks.
        bytes: Maps a kind of all-reduce to the bytes that all ranks have sent.
    """

    epoch: int
    step: int
    steps: int
    ranks: dict[str, list[float]]
    all_reduces: dict[str, list[int]]
    bytes: dict[str, int]


@dataclass(frozen=True)
class SaveDone:
    """A checkpoint that was written."""

    step: int
    path: Path
    seconds: float


@dataclass(frozen=True)
class EpochDone:
    """An epoch, with the results of its evaluation if there was one."""

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
    """Base class whose methods do nothing; observers override what they need.

    Attributes:
        what: Name of the observer in the warning when it fails.
        essential: Whether its failure ends the job, as for an observer with collectives.
    """

    what = "an observer"
    essential = False

    def on_start(self, run: RunStarted) -> None:
        """Before the first step."""

    def on_step(self, step: StepDone) -> None:
        """After every optimizer step."""

    def on_window(self, window: WindowDone) -> None:
        """After several steps, with the measurements of all ranks."""

    def on_evaluation(self, step: int) -> None:
        """Before an evaluation."""

    def on_save(self, step: int) -> None:
        """Before a checkpoint is written."""

    def on_saved(self, save: SaveDone) -> None:
        """After a checkpoint was written, on the rank that wrote it."""

    def on_epoch(self, epoch: EpochDone) -> None:
        """After every epoch."""

    def on_end(self, summary: dict[str, Any]) -> None:
        """After the last step, or the step at which the run was stopped."""


class Observers(Observer):
    """Several observers as one. An observer that fails is removed, and training continues."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        self._observers.append(observer)

    def on_start(self, run: RunStarted) -> None:
        self._notify(lambda observer: observer.on_start(run))

    def on_step(self, step: StepDone) -> None:
        self._notify(lambda observer: observer.on_step(step))

    def on_window(self, window: WindowDone) -> None:
        self._notify(lambda observer: observer.on_window(window))

    def on_evaluation(self, step: int) -> None:
        self._notify(lambda observer: observer.on_evaluation(step))

    def on_save(self, step: int) -> None:
        self._notify(lambda observer: observer.on_save(step))

    def on_saved(self, save: SaveDone) -> None:
        self._notify(lambda observer: observer.on_saved(save))

    def on_epoch(self, epoch: EpochDone) -> None:
        self._notify(lambda observer: observer.on_epoch(epoch))

    def on_end(self, summary: dict[str, Any]) -> None:
        self._notify(lambda observer: observer.on_end(summary))

    def _notify(self, call: Callable[[Observer], None]) -> None:
        for observer in list(self._observers):
            try:
                call(observer)
            except Exception as error:
                if observer.essential:
                    raise
                self._observers.remove(observer)
                ours = isinstance(error, LauncherError)
                text = str(error) if ours else f"{type(error).__name__}: {error}"
                reason = text.partition("\n")[0]  # TensorFlow's errors have many lines
                warn(f"{observer.what} is disabled from now on: {reason}")
                _log.debug("an observer failed", exc_info=error)


def warn(text: str) -> None:
    """Prints and logs a warning about something that does not stop training."""
    print(f"launcher.train: {text}; training continues", file=sys.stderr, flush=True)
    _log.info("warning: %s; training continues", text)


class HeartbeatObserver(Observer):
    """Reports the progress of this rank to the supervisor."""

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
