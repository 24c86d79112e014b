"""The compiled computations on a batch: a training step, possibly in micro-batches; evaluation."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from launcher.train.replicas import Replicas
from syncbn import telemetry
from syncbn.communicators import Communicator
from syncbn.communicators.contribution import contribute_only_if
from syncbn.gradient_accumulator import GradientAccumulator
from syncbn.gradients import densify, presence_of
from syncbn.update_guard import UpdateGuard, with_defect

# Marks the placeholder rows of a rank whose batch is empty.
_NO_LABEL = -1


class StepStatus(NamedTuple):
    """The result of one training step, summed over the ranks.

    Attributes:
        loss: Σ loss over the rows.
        correct: Number of rows predicted correctly.
        rows: Number of rows.
        stop: Number of ranks asked to stop.
        skipped: Updates that were skipped because they were not finite, equal on all ranks.
    """

    loss: float
    correct: float
    rows: float
    stop: float
    skipped: float


class Steps:
    """The compiled functions of one model; created again when the set of ranks changes.

    The loss of a batch is a sum over its rows, and gradients are divided by the rows of all ranks:
    the result is the mean over the global batch, even with uneven shares. A rank whose batch is
    empty joins every collective with placeholder rows that contribute zero.

    Args:
        model: The model, built.
        optimizer: A `syncbn.DistributedOptimizer`.
        communicator: The ranks.
        replicas: The replicas of this process.
        batch_size: Usual number of rows per replica. Sums are divided by it, so that the loss and
            gradients in half precision have the magnitude of a mean.
        label_smoothing: Smoothing of the training loss.
        on_nan: The action on an update that is not finite: `stop`, `skip` or `ignore`.
        micro_batches: Parts of each batch, computed in turn to save memory. The optimizer sees the
            same global batch; batch normalization sees the parts.

    Attributes:
        guard: Skips updates that are not finite. None with `ignore`, and under a strategy, which
            sums the gradients inside the optimizer.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: Any,
        communicator: Communicator,
        replicas: Replicas,
        *,
        batch_size: int,
        label_smoothing: float = 0.0,
        on_nan: str = "stop",
        micro_batches: int = 1,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._communicator = communicator
        self._batch_size = batch_size
        self._unit = float(batch_size)
        self._smoothing = label_smoothing
        self._micro_batches = micro_batches
        self.guard: UpdateGuard | None = None
        self._skipped = 0.0
        if on_nan != "ignore" and replicas.count == 1:
            self.guard = UpdateGuard(optimizer, thorough=on_nan == "skip")
            self.guard.attach()
        batch = [
            tf.TensorSpec([None, *model.input_shape[1:]], tf.float32),
            tf.TensorSpec([None], tf.int32),
        ]
        self._evaluate = replicas.compiled(self._evaluation_body, batch)
        if micro_batches == 1:
            step = [*batch, tf.TensorSpec([2])]
            self._train = replicas.compiled(self._train_body, step)
            self._train_empty = replicas.compiled(self._train_empty_body, step)
        else:
            self._pass_sums = GradientAccumulator(model.trainable_variables, _zeros)
            self._accumulate = replicas.compiled(self._accumulate_body, batch)
            self._accumulate_empty = replicas.compiled(self._accumulate_empty_body, batch)
            self._finish = replicas.compiled(self._finish_body, [tf.TensorSpec([5])])

    def train(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        stop: bool,
        fewest_rows: int,
        learning_rate: float,
    ) -> StepStatus:
        """Runs one optimizer step over all ranks. A collective call.

        Args:
            features: Rows of this process, (rows, *shape).
            labels: (rows,).
            stop: Whether this rank was asked to stop; it is reduced together with the losses, so
                that all ranks learn of it at the same step.
            fewest_rows: The smallest number of rows of any rank in this step. It bounds the number
                of micro-batches, which must be equal on all ranks (each is a collective), and none
                may be empty.
            learning_rate: Of this step; set within the compiled step, which is much cheaper than
                an assignment before it.
        """
        empty = len(labels) == 0
        if empty:
            features = np.zeros((self._batch_size, *features.shape[1:]), np.float32)
            labels = np.full(self._batch_size, _NO_LABEL, np.int32)
        if self._micro_batches == 1:
            step = self._train_empty if empty else self._train
            control = tf.constant([float(stop), learning_rate])
            status = StepStatus(*step(features, labels, control).tolist())
        else:
            before = [(v, v.numpy()) for v in self._statistics]
            count = min(self._micro_batches, max(1, fewest_rows))
            control = [float(stop), learning_rate]
            status = self._train_in_parts(features, labels, control, count, empty)
            if status.skipped > self._skipped:
                for variable, value in before:
                    variable.assign(value)
        earlier, self._skipped = self._skipped, status.skipped
        return status._replace(skipped=status.skipped - earlier)

    @property
    def hopeless(self) -> str | None:
        """Why loss scaling cannot help any more; None while it can."""
        return None if self.guard is None else self.guard.hopeless

    @property
    def _statistics(self) -> list[Any]:
        """The variables that the forward pass updates."""
        if self.guard is None:
            return []
        return [v for v in self._model.non_trainable_variables if "float" in v.dtype]

    def _train_in_parts(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        control: list[float],
        count: int,
        empty: bool,
    ) -> StepStatus:
        """Like `train`; counts the skipped updates since the beginning."""
        parts = zip(np.array_split(features, count), np.array_split(labels, count), strict=True)
        accumulate = self._accumulate_empty if empty else self._accumulate
        sums = np.sum([accumulate(*part) for part in parts], axis=0)
        status = tf.constant([*sums, *control], tf.float32)
        return StepStatus(*self._finish(status).tolist())

    def evaluate(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Σ loss, Σ correct and rows of the batch of this process, without communication."""
        return self._evaluate(features, labels)

    def _train_body(self, features: tf.Tensor, labels: tf.Tensor, control: tf.Tensor) -> tf.Tensor:
        """`control`: whether to stop, and the learning rate, (2,)."""
        self._optimizer.learning_rate = control[1]
        with self._restored_if_skipped():
            gradients, sums = self._gradients(features, labels)
            self._apply(gradients, sums[2])
        return self._over_ranks(tf.concat([sums, control[:1]], axis=0))

    def _train_empty_body(
        self, features: tf.Tensor, labels: tf.Tensor, control: tf.Tensor
    ) -> tf.Tensor:
        """The collectives of `_train_body` for an empty batch, on placeholder rows."""
        self._optimizer.learning_rate = control[1]
        with self._restored_if_skipped():
            gradients, sums = self._empty_gradients(features, labels)
            self._apply(gradients, sums[2])
        return self._over_ranks(tf.concat([sums, control[:1]], axis=0))

    def _restored_if_skipped(self) -> AbstractContextManager[None]:
        """Restores the moving statistics on exit if the update was skipped."""
        return nullcontext() if self.guard is None else self.guard.keeping(self._statistics)

    def _accumulate_empty_body(self, features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return self._accumulated(*self._empty_gradients(features, labels))

    def _empty_gradients(
        self, features: tf.Tensor, labels: tf.Tensor
    ) -> tuple[list[Any], tf.Tensor]:
        # Always False, but TensorFlow must not know that when it traces: it would remove branches
        # that contribute zero, and with them collectives in which the other ranks wait.
        here = tf.reduce_any(labels != _NO_LABEL)
        with contribute_only_if(here):
            gradients, sums = self._gradients(features, labels)
        for index, variable in enumerate(self._model.trainable_variables):
            if gradients[index] is not None:
                dense = densify(gradients[index], variable)
                gradients[index] = tf.where(here, dense, tf.zeros_like(dense))
        return gradients, tf.where(here, sums, tf.zeros_like(sums))

    def _accumulate_body(self, features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return self._accumulated(*self._gradients(features, labels))

    def _accumulated(self, gradients: list[Any], sums: tf.Tensor) -> tf.Tensor:
        variables = self._model.trainable_variables
        dense = [densify(g, v) for g, v in zip(gradients, variables, strict=True)]
        self._pass_sums.add(dense, range(len(dense)), presence_of(gradients), sums[2])
        return sums

    def _finish_body(self, status: tf.Tensor) -> tf.Tensor:
        def apply(sums: list[tf.Tensor], presence: tf.Tensor, rows: tf.Tensor) -> None:
            self._apply(sums, rows)

        self._optimizer.learning_rate = status[4]
        self._pass_sums.apply(range(len(self._model.trainable_variables)), apply)
        return self._over_ranks(status[:4])

    def _gradients(self, features: tf.Tensor, labels: tf.Tensor) -> tuple[list[Any], tf.Tensor]:
        rows = tf.cast(tf.shape(labels)[0], tf.float32)
        with tf.GradientTape() as tape:
            logits = self._model(features, training=True)
            losses = cross_entropy(labels, logits, self._smoothing)
            penalty = (rows / self._unit) * sum(self._model.losses)
            loss = self._optimizer.scale_loss(tf.reduce_sum(losses) / self._unit + penalty)
        gradients = tape.gradient(loss, self._model.trainable_variables)
        if self.guard is not None:
            gradients = with_defect(gradients, tf.reduce_sum(losses))
        return gradients, tf.stack([tf.reduce_sum(losses), correct(labels, logits), rows])

    def _apply(self, gradients: list[Any], rows: tf.Tensor) -> None:
        pairs = zip(gradients, self._model.trainable_variables, strict=True)
        self._optimizer.apply_gradients(pairs, rows=rows / self._unit)

    def _over_ranks(self, status: tf.Tensor) -> tf.Tensor:
        status = telemetry.all_reduce(self._communicator, status, "step_status", "other")
        skipped = 0.0 if self.guard is None else tf.cast(self.guard.left_out, tf.float32)
        return tf.concat([status, [skipped]], axis=0)

    def _evaluation_body(self, features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        logits = self._model(features, training=False)
        losses = cross_entropy(labels, logits)
        rows = tf.cast(tf.shape(labels)[0], tf.float32)
        return tf.stack([tf.reduce_sum(losses), correct(labels, logits), rows])


def _zeros(shape: Sequence[int], dtype: str, name: str) -> tf.Variable:
    return tf.Variable(tf.zeros(shape, dtype), trainable=False, name=name)


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Softmax cross-entropy of each row, (rows,) float32, from class numbers."""
    classes = logits.shape[-1]
    targets = tf.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32))


def correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The number of rows whose largest logit is at the label, a float32 scalar."""
    guesses = tf.argmax(logits, axis=-1, output_type=labels.dtype)
    return tf.reduce_sum(tf.cast(guesses == labels, tf.float32))
