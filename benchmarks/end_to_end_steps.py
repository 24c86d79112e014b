"""The steps of `benchmarks.end_to_end`: a model, trained with and without observers."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks.harness import rank
from launcher.heartbeat import Heartbeat
from launcher.train.config import TrainConfig, load_config
from launcher.train.data import DataSet, Sharding, load_dataset
from launcher.train.data.dataset import Part
from launcher.train.divergence import NonFiniteCheck
from launcher.train.loop import TrainingLoop
from launcher.train.models import build_model
from launcher.train.observers.assemble import assemble
from launcher.train.observers.base import Observer, RunStarted
from launcher.train.observers.exporter import Exporter
from launcher.train.observers.startup import StartupTimes
from launcher.train.optimizer import make_optimizer
from launcher.train.replicas import Replicas
from launcher.train.steps import Steps
from launcher.train.train_state import StepTimes, TrainState


class Service(rank.TimingService):
    """Contenders: `steps` alone on one batch; the `loop` of `launcher.train` without observers;
    the loop `with metrics` and heartbeats, as under a launcher. One step is an epoch.
    """

    def make(self, contender: str, case: dict[str, Any]) -> rank.Step:
        config = load_config({"model": case["model"], "metrics_port": 0})
        data = load_dataset(config.dataset)
        rows = np.arange(case["steps"] * config.batch_size * self.communicator.size)
        data = replace(data, train=Part(data.train, rows))
        output = Path(tempfile.mkdtemp(prefix="end-to-end-"))
        keras.utils.set_random_seed(0)
        model = build_model(config.model, data.shape, data.classes)
        optimizer = make_optimizer(config.optimizer, config.learning_rate)
        optimizer.build(model.trainable_variables)
        observers: Observer = Observer()
        if contender == "with metrics":  # before the steps are traced: they are measured, too
            observers = self._observers(model, config, output)
        steps = Steps(model, optimizer, self.communicator, Replicas(), batch_size=config.batch_size)
        if contender == "steps":
            return _repeated(steps, data, case["steps"], config)
        return self._epoch(model, optimizer, steps, data, observers, config)

    def _observers(self, model: keras.Model, config: TrainConfig, output: Path) -> Observer:
        os.environ["LAUNCHER_RUN_DIR"] = str(output)
        names = {"model": config.model, "dataset": config.dataset, "norm": config.norm}
        exporter = Exporter(0, config.metrics_host, None)
        exporter.joined(self.communicator, output, 0.0, names)
        observers = assemble(
            model,
            self.communicator,
            output,
            Heartbeat(output / f"heartbeat-{self.communicator.rank}"),
            exporter,
            StartupTimes(),
            options=config.model_dump(mode="json"),
            norm=config.norm,
        )
        observers.on_start(
            RunStarted(
                model=config.model,
                dataset=config.dataset,
                norm=config.norm,
                parameters=int(model.count_params()),
                rank=self.communicator.rank,
                world_size=self.communicator.size,
                backend=self.communicator.name,
                epochs=config.epochs,
                epoch=0,
                step=0,
                steps_per_epoch=1,
                output=output,
            )
        )
        return observers

    def _epoch(
        self,
        model: keras.Model,
        optimizer: Any,
        steps: Steps,
        data: DataSet,
        observers: Observer,
        config: TrainConfig,
    ) -> rank.Step:
        state = TrainState()
        variables = [*model.variables, *optimizer.variables]
        loop = TrainingLoop(
            data,
            model,
            steps,
            state,
            Sharding(config.batch_size, self.communicator),
            self.communicator,
            NonFiniteCheck(config.on_nan, model, variables, steps, self.communicator),
            observers,
            StepTimes(),
            seed=config.seed,
            learning_rate=lambda progress, size: config.learning_rate,
            stop_requested=lambda: False,
            commit=lambda epoch_ended: None,
            write_checkpoint=_no_checkpoint,
            checkpoint_steps=None,
            local_statistics=False,
        )

        def epoch() -> None:
            loop.train_epoch()
            state.consumed = 0

        return epoch


def _repeated(steps: Steps, data: DataSet, count: int, config: TrainConfig) -> Callable[[], None]:
    """As many steps as an epoch has, on one batch in memory."""
    rows, rate = config.batch_size, config.learning_rate
    batch = data.train.read(np.arange(rows))

    def epoch() -> None:
        for _ in range(count):
            steps.train(*batch, False, rows, rate)

    return epoch


def _no_checkpoint() -> Any:
    raise AssertionError("an epoch without checkpoint_steps saves nothing")
