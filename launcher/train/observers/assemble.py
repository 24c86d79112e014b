"""Who watches a rank, in the order in which they hear of things."""

from pathlib import Path

import keras
from rich.console import Console

from launcher.heartbeat import Heartbeat
from launcher.runs.layout import TRAINING_EVENTS
from launcher.train.config import TrainConfig
from launcher.train.observers.base import HeartbeatObserver, Observers
from launcher.train.observers.cross_rank import CrossRankWindows
from launcher.train.observers.exporter import Exporter
from launcher.train.observers.journal import Journal
from launcher.train.observers.mlflow import MLflow
from launcher.train.observers.moving_statistics import MovingStatisticsDrift, weights_to_compare
from launcher.train.observers.profile import Profile, parse_range
from launcher.train.observers.progress import ProgressLines
from launcher.train.observers.report import Report
from launcher.train.observers.step_timing import StepTiming
from launcher.train.observers.tensorboard import TensorBoard
from launcher.version import versions
from syncbn.communicators import Communicator


def assemble(
    config: TrainConfig,
    model: keras.Model,
    communicator: Communicator,
    output: Path,
    heartbeat: Heartbeat,
    exporter: Exporter,
) -> Observers:
    """The observers of this rank. Must be made before the first step is traced."""
    timing = StepTiming(exporter.page)
    observers = Observers([HeartbeatObserver(heartbeat), timing])
    weights = weights_to_compare(model, config.norm)
    observers.add(CrossRankWindows(timing, exporter.page, communicator, weights, observers))
    if communicator.rank == 0:
        about = {"config": config.model_dump(mode="json"), "versions": versions()}
        journal = output / TRAINING_EVENTS
        observers.add(
            Journal(journal, about, lambda: timing.gradient_norm, MovingStatisticsDrift(model))
        )
        observers.add(ProgressLines(Console()))
        if config.tensorboard:
            observers.add(TensorBoard(output / "tensorboard"))
        if config.mlflow:
            observers.add(MLflow(output, about["config"]))
    if config.profile_steps is not None:
        first, last = parse_range(config.profile_steps)
        observers.add(Profile(first, last, output, communicator, timing))
    observers.add(exporter)
    if communicator.rank == 0:
        observers.add(Report(output))
    return observers
