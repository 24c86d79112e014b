"""The training loop on the current ranks: trains an epoch, evaluates, saves."""

import math
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import syncbn
from launcher.train.coordination import together
from launcher.train.data import DataSet, Sharding, batches
from launcher.train.divergence import NonFiniteCheck
from launcher.train.observers.base import EpochDone, Observer, SaveDone, StepDone
from launcher.train.steps import Steps
from launcher.train.train_state import Evaluation, StepTimes, TrainState
from syncbn.communicators import Communicator


class TrainingLoop:
    """What the training program repeats; created again when the set of ranks changes.

    Args:
        data: The data set, equal on every rank.
        model: The model.
        steps: The compiled steps of the model and its optimizer.
        state: The loop state, updated by every step and epoch.
        sharding: The samples of this rank.
        communicator: The ranks.
        check: Decides about results that are not finite.
        observer: Called at every step, evaluation, checkpoint and epoch.
        times: Collects the duration of every step.
        seed: Seed of the sample order.
        learning_rate: The rate after some epochs on some number of ranks.
        stop_requested: Whether this rank was asked to stop.
        commit: Called after each step with False, and after each epoch with True.
        write_checkpoint: Writes a checkpoint; called on rank 0 only.
        checkpoint_steps: Steps between checkpoints within an epoch; None for none.
        local_statistics: Whether each rank has its own moving statistics.
    """

    def __init__(
        self,
        data: DataSet,
        model: keras.Model,
        steps: Steps,
        state: TrainState,
        sharding: Sharding,
        communicator: Communicator,
        check: NonFiniteCheck,
        observer: Observer,
        times: StepTimes,
        *,
        seed: int,
        learning_rate: Callable[[float, int], float],
        stop_requested: Callable[[], bool],
        commit: Callable[[bool], None],
        write_checkpoint: Callable[[], SaveDone],
        checkpoint_steps: int | None,
        local_statistics: bool,
    ) -> None:
        self._data, self._model, self._steps = data, model, steps
        self._state, self._sharding, self._communicator = state, sharding, communicator
        self._check, self._observer, self._times = check, observer, times
        self._seed, self._rate, self._stop_requested = seed, learning_rate, stop_requested
        self._commit, self._write_checkpoint = commit, write_checkpoint
        self._checkpoint_steps, self._local_statistics = checkpoint_steps, local_statistics
        self._epoch_seconds = 0.0

    def train_epoch(self) -> bool:
        """Trains on the remainder of the epoch; True if the ranks agreed to stop during it."""
        state, every = self._state, self._checkpoint_steps
        began = time.perf_counter()
        examples, order = self._data.train.in_epoch(self._seed, state.epoch)
        with batches(examples, self._sharding.shares(order, state.consumed)) as prefetched:
            started = time.perf_counter()
            for features, labels in prefetched:
                waited = time.perf_counter() - started
                rate = self._learning_rate()
                fewest_rows = self._sharding.fewest_rows(len(self._data.train), state.consumed)
                status = self._steps.train(
                    features, labels, self._stop_requested(), fewest_rows, rate
                )
                loss, correct, rows = status[:3]
                state.step += 1
                state.consumed += int(rows)
                now = time.perf_counter()
                seconds, started = now - started, now
                self._times.add(seconds, int(rows))
                self._observer.on_step(
                    StepDone(
                        state.epoch,
                        state.step,
                        loss / rows,
                        correct / rows,
                        int(rows),
                        rate,
                        seconds,
                        rows_here=len(labels),
                        input_seconds=waited,
                    )
                )
                if self._check.accepts(state, loss, status.skipped > 0, features):
                    state.sums = [a + b for a, b in zip(state.sums, status[:3], strict=True)]
                self._commit(False)
                if status.stop:
                    return True
                if every and state.step % every == 0:
                    self.save()
        state.epoch += 1
        self._epoch_seconds = time.perf_counter() - began
        return False

    def evaluate(self) -> Evaluation:
        """Evaluates on the held-out part, of which each rank reads its share. A collective call."""
        self._observer.on_evaluation(self._state.step)
        if self._local_statistics:  # those of rank 0 belong to the model
            syncbn.broadcast_variables(self._model.non_trainable_variables)
        held_out, totals, read_nan = self._data.validation, np.zeros(3), False
        with batches(held_out, self._sharding.shares(np.arange(len(held_out)))) as prefetched:
            for features, labels in prefetched:
                if len(labels):
                    sums = self._steps.evaluate(features, labels)
                    read_nan |= not (np.isfinite(sums[0]) or np.isfinite(features).all())
                    totals += sums
        totals = self._communicator.all_reduce(tf.constant(totals), "evaluation").numpy()
        loss, correct, rows = totals.tolist()
        return Evaluation(loss / rows, correct / rows, read_nan)

    def finish_epoch(self, evaluation: Evaluation | None) -> float:
        """Reports the epoch and resets its sums; returns the mean training loss."""
        state, seconds = self._state, self._epoch_seconds
        if evaluation is not None:
            state.record_evaluation(evaluation.loss)
        loss, correct, rows = state.sums
        # Zero rows: every update of the epoch was skipped.
        loss, accuracy = (loss / rows, correct / rows) if rows else (math.nan, math.nan)
        done = EpochDone(
            state.epoch - 1,
            state.step,
            loss,
            accuracy,
            None if evaluation is None else evaluation.loss,
            None if evaluation is None else evaluation.accuracy,
            self._learning_rate(),
            rows / seconds,
            seconds,
        )
        state.consumed, state.sums = 0, [0.0, 0.0, 0.0]
        self._observer.on_epoch(done)
        return loss

    def save(self) -> None:
        """Writes a checkpoint on rank 0. A collective call."""
        self._check.check_state(self._state.step)
        self._observer.on_save(self._state.step)
        # The other ranks would wait for rank 0 in the next step; here they learn of an error.
        together(self._communicator, self._save_on_rank_0)

    def _save_on_rank_0(self) -> None:
        if self._communicator.rank == 0:
            self._observer.on_saved(self._write_checkpoint())

    def check_evaluation(self, evaluation: Evaluation | None) -> None:
        """Ends the run if the held-out loss is not finite and `--on-nan` is `stop`."""
        if evaluation is not None:
            self._check.check_evaluation(self._state.step, evaluation.loss, evaluation.read_nan)

    def _learning_rate(self) -> float:
        state = self._state
        progress = state.epoch + state.consumed / len(self._data.train)
        return self._rate(progress, self._sharding.world_size)
