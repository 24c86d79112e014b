"""The observers of a rank, in the order in which the loop calls them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from launcher.heartbeat import Heartbeat
from launcher.runs.layout import TRAINING_EVENTS
from launcher.train.observers.base import HeartbeatObserver, Observers
from launcher.train.observers.cross_rank import CrossRankWindows
from launcher.train.observers.exporter import Exporter
from launcher.train.observers.journal import Journal
from launcher.train.observers.mlflow import MLflow
from launcher.train.observers.moving_statistics import MovingStatisticsDrift, weights_to_compare
from launcher.train.observers.profile import Profile, parse_range
from launcher.train.observers.progress import ProgressLines
from launcher.train.observers.startup import StartupTimes
from launcher.train.observers.step_timing import StepTiming
from launcher.train.observers.tensorboard import TensorBoard
from launcher.train.report import Report
from launcher.version import versions
from syncbn.communicators import Communicator


def assemble(
    model: keras.Model,
    communicator: Communicator,
    output: Path,
    heartbeat: Heartbeat,
    exporter: Exporter,
    startup: StartupTimes,
    *,
    options: Mapping[str, Any],
    norm: str,
    tensorboard: bool = False,
    mlflow: bool = False,
    profile_steps: str | None = None,
) -> Observers:
    """Creates the observers of this rank. Must run before the first step is traced.

    Args:
        model: The model that is trained.
        communicator: The ranks.
        output: The output directory.
        heartbeat: Reports progress to the supervisor.
        exporter: Exports the metrics.
        startup: Measures the time to the first step.
        options: The options of the run, for the records.
        norm: Kind of batch normalization: `local` statistics are not compared over the ranks.
        tensorboard: Whether to write scalars for TensorBoard.
        mlflow: Whether to log the run to MLflow.
        profile_steps: Range of steps to profile, such as `10:20`.
    """
    timing = StepTiming(exporter.page)
    observers = Observers([startup, HeartbeatObserver(heartbeat), timing])
    weights = weights_to_compare(model, norm)
    observers.add(CrossRankWindows(timing, exporter.page, communicator, weights, observers))
    if communicator.rank == 0:
        about = {"config": options, "versions": versions()}
        journal, drift = output / TRAINING_EVENTS, MovingStatisticsDrift(model)
        observers.add(Journal(journal, about, lambda: timing.gradient_norm, drift))
        observers.add(ProgressLines(Console()))
        if tensorboard:
            observers.add(TensorBoard(output / "tensorboard"))
        if mlflow:
            observers.add(MLflow(output, dict(options)))
    if profile_steps is not None:
        first, last = parse_range(profile_steps)
        observers.add(Profile(first, last, output, communicator, timing))
    observers.add(exporter)
    if communicator.rank == 0:
        observers.add(Report(output))
    return observers
