"""The training loop: the same program on one rank and on many, from any point of an epoch on."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from launcher.train.checkpoint import Checkpoint, CheckpointStore
from launcher.train.config import TrainConfig
from launcher.train.coordination import together
from launcher.train.data import DataSet, batches
from launcher.train.data.order import next_global_batch, rank_shares
from launcher.train.divergence import NonFiniteWatch
from launcher.train.observers.base import EpochDone, Observer, SaveDone, StepDone
from launcher.train.replicas import Replicas
from launcher.train.schedule import learning_rate
from launcher.train.steps import Steps
from launcher.train.train_state import Outcome, Position, StepTimes
from syncbn.broadcast import broadcast_variables
from syncbn.communicators import Communicator


class Trainer:
    """Trains one model on one data set over the ranks of a communicator.

    Args:
        config: The run.
        data: Its data set, the same on every rank.
        model: Built; its variables become equal on all ranks when training starts.
        optimizer: A `syncbn.DistributedOptimizer`, built.
        communicator: The communicator.
        replicas: Those of this process.
        store: Where rank 0 keeps checkpoints.
        observer: Told of every step and epoch.
        stop_requested: Whether this rank was asked to stop.
        commit: Called after every step with False, after every epoch with True; elastic jobs save
            their state there.
        position: Where the run stands.
        micro_batches: Pieces each batch is computed in.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: DataSet,
        model: keras.Model,
        optimizer: Any,
        communicator: Communicator,
        replicas: Replicas,
        store: CheckpointStore,
        observer: Observer,
        stop_requested: Callable[[], bool],
        commit: Callable[[bool], None] = lambda epoch_ended: None,
        position: Position | None = None,
        micro_batches: int = 1,
    ) -> None:
        self._config = config
        self._data = data
        self._model = model
        self._optimizer = optimizer
        self._communicator = communicator
        self._replicas = replicas
        self._store = store
        self._observer = observer
        self._stop_requested = stop_requested
        self._commit = commit
        self._micro_batches = micro_batches
        self._steps = Steps(config, model, optimizer, communicator, replicas, micro_batches)
        self.times = StepTimes()
        self.position = position or Position()

    @property
    def world_size(self) -> int:
        """Replicas over all processes."""
        return self._communicator.size * self._replicas.count

    @property
    def variables(self) -> list[Any]:
        """All state that training changes: weights, moving statistics, seeds, optimizer."""
        return [*self._model.variables, *self._optimizer.variables]

    def run(self) -> Outcome:
        """Trains to the last epoch, or to the step edge at which a rank was asked to stop."""
        broadcast_variables(self.variables)
        self._watch = NonFiniteWatch(
            self._config, self._model, self.variables, self._steps, self._communicator
        )
        position = self.position
        validation, train_loss, stopped = None, None, False
        while position.epoch < self._config.epochs and not self._is_over():
            started = time.perf_counter()
            stopped = self._train_rest_of_epoch()
            if stopped:
                break
            loss, correct, rows = position.sums
            # Without rows every step of the epoch was left out.
            train_loss = loss / rows if rows else math.nan
            seconds = time.perf_counter() - started
            position.epoch += 1
            last = position.epoch == self._config.epochs
            validation = None
            if last or position.epoch % self._config.evaluate_every == 0:
                validation = self._evaluate()
                position.note(validation[0])
            done = EpochDone(
                position.epoch - 1,
                position.step,
                train_loss,
                correct / rows if rows else math.nan,
                validation[0] if validation else None,
                validation[1] if validation else None,
                self._learning_rate(),
                rows / seconds,
                seconds,
            )
            position.consumed, position.sums = 0, [0.0, 0.0, 0.0]
            self._observer.on_epoch(done)
            self._save()
            if validation is not None:
                self._watch.check_evaluation(position.step, validation[0], self._damaged)
            self._commit(True)
        if stopped:
            self._save()
            # A rank that leaves may take the others with it: save first.
            self._communicator.barrier()
        elif validation is None:
            validation = self._evaluate()  # A run that had ended already still says how good it is.
            self._watch.check_evaluation(position.step, validation[0], self._damaged)
        return Outcome(self.times, stopped, self._is_over(), validation, train_loss)

    def _is_over(self) -> bool:
        """Whether the held-out loss has not fallen for as long as `--early-stopping` allows."""
        patience = self._config.early_stopping
        return patience is not None and self.position.evaluations_since_best >= patience

    def _train_rest_of_epoch(self) -> bool:
        """Trains on what is left of the epoch; True if the ranks agreed to stop on the way."""
        position, config = self.position, self._config
        examples, order = self._data.train.in_epoch(config.seed, position.epoch)
        with batches(examples, self._shares(order, position.consumed)) as ready:
            started = time.perf_counter()
            for features, labels in ready:
                waited = time.perf_counter() - started
                rate = self._learning_rate()
                self._optimizer.learning_rate = rate
                status = self._steps.train(
                    features, labels, self._stop_requested(), self._fewest_rows()
                )
                loss, correct, rows, stops, left_out = status
                position.step += 1
                position.consumed += int(rows)
                now = time.perf_counter()
                seconds, started = now - started, now
                self.times.add(seconds, int(rows))
                self._observer.on_step(
                    StepDone(
                        position.epoch,
                        position.step,
                        loss / rows,
                        correct / rows,
                        int(rows),
                        rate,
                        seconds,
                        rows_here=len(labels),
                        input_seconds=waited,
                    )
                )
                if self._watch.is_sound(position, loss, left_out > 0, features):
                    position.sums = [a + b for a, b in zip(position.sums, status[:3], strict=True)]
                self._commit(False)
                if stops:
                    return True
                every = config.checkpoint_steps
                if every and position.step % every == 0:
                    self._save()
        return False

    def _shares(self, order: np.ndarray, consumed: int) -> Any:
        """This process' rows of each step: those of all its replicas together."""
        communicator, rows = self._communicator, self._config.batch_size
        return rank_shares(
            order, consumed, rows, communicator.rank, communicator.size, self._replicas.count
        )

    def _fewest_rows(self) -> int:
        """Of any rank in the step that comes, which all ranks must know."""
        count, size = len(self._data.train), self.world_size
        rows = next_global_batch(count, self.position.consumed, self._config.batch_size, size)
        return rows // size

    def _learning_rate(self) -> float:
        progress = self.position.epoch + self.position.consumed / len(self._data.train)
        return learning_rate(self._config, progress, self.world_size)

    def _evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy over the held-out part, each rank reading its share of it."""
        self._observer.on_evaluation(self.position.step)
        if self._config.norm == "local":
            # Each rank has moving statistics of its own; rank 0's are the model's.
            broadcast_variables(self._model.non_trainable_variables)
        held_out = self._data.validation
        totals, self._damaged = np.zeros(3), False
        with batches(held_out, self._shares(np.arange(len(held_out)), 0)) as ready:
            for features, labels in ready:
                if len(labels):
                    sums = self._steps.evaluate(features, labels)
                    self._damaged |= not (np.isfinite(sums[0]) or np.isfinite(features).all())
                    totals += sums
        loss, right, rows = self._communicator.all_reduce(tf.constant(totals), "evaluation").numpy()
        return float(loss / rows), float(right / rows)

    def _save(self) -> None:
        self._watch.check_state(self.position.step)
        self._observer.on_save(self.position.step)
        # The others wait for rank 0 in the next step anyway; so they leave with it if it fails.
        together(self._communicator, self._write)

    def _write(self) -> None:
        if self._communicator.rank == 0:
            variables = self.variables
            meta = {
                "position": asdict(self.position),
                "world_size": self.world_size,
                "micro_batches": self._micro_batches,
                "config": self._config.model_dump(mode="json"),
                "variables": [variable.path for variable in variables],
            }
            arrays = [np.asarray(variable) for variable in variables]
            started = time.perf_counter()
            path = self._store.save(Checkpoint(self.position.step, meta, arrays))
            seconds = time.perf_counter() - started
            self._observer.on_saved(SaveDone(self.position.step, path, seconds))
