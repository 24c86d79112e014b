"""Who watches a rank, in the order in which they hear of things."""

from pathlib import Path

import keras
from rich.console import Console

from launcher.heartbeat import Heartbeat
from launcher.runs.layout import TRAINING_EVENTS
from launcher.train.config import TrainConfig
from launcher.train.observers import HeartbeatObserver, Observers
from launcher.train.progress import ProgressLines
from launcher.train.watch.closing import Report
from launcher.train.watch.exchange import Exchange
from launcher.train.watch.exporter import Exporter
from launcher.train.watch.journal import Journal
from launcher.train.watch.measures import Measures
from launcher.train.watch.profile import Profile, parse_range
from launcher.train.watch.statistics import Drifts, weights_to_compare
from launcher.train.watch.tensorboard import TensorBoard
from launcher.train.watch.tracking import MLflow
from launcher.version import versions
from syncbn.communicators import Communicator


def assemble(
    config: TrainConfig,
    model: keras.Model,
    ranks: Communicator,
    output: Path,
    heartbeat: Heartbeat,
    exporter: Exporter,
) -> Observers:
    """The observers of this rank. Must be made before the first step is traced."""
    measures = Measures(exporter.page)
    observers = Observers([HeartbeatObserver(heartbeat), measures])
    weights = weights_to_compare(model, config.norm)
    observers.add(Exchange(measures, exporter.page, ranks, weights, observers))
    if ranks.rank == 0:
        about = {"config": config.model_dump(mode="json"), "versions": versions()}
        journal = output / TRAINING_EVENTS
        observers.add(Journal(journal, about, lambda: measures.gradient_norm, Drifts(model)))
        observers.add(ProgressLines(Console()))
        if config.tensorboard:
            observers.add(TensorBoard(output / "tensorboard"))
        if config.mlflow:
            observers.add(MLflow(output, about["config"]))
    if config.profile_steps is not None:
        first, last = parse_range(config.profile_steps)
        observers.add(Profile(first, last, output, ranks, measures))
    observers.add(exporter)
    if ranks.rank == 0:
        observers.add(Report(output))
    return observers
