"""What is computed on a batch: a training step in one go or in micro-batches, and an evaluation."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from launcher.train.config import TrainConfig
from launcher.train.replicas import Replicas
from syncbn import telemetry
from syncbn.communicators import Communicator
from syncbn.communicators.silent import rows_count_only_if
from syncbn.gradients import densify
from syncbn.update_guard import UpdateGuard, with_defect

# What a step adds up over the ranks: Σ loss, Σ correct, rows, ranks asked to stop. And, equal on
# all, whether the update was left out because it was not finite.
STATUS = ("loss", "correct", "rows", "stop", "left_out")

_NO_LABEL = -1


class Steps:
    """The compiled functions of one model, made anew when the ranks change.

    The loss of a batch is a sum over rows and gradients are divided by the rows of all ranks, which
    makes it the mean over the global batch however uneven the shares. A rank without rows takes
    part with zeros in their place, which count for nothing.

    Args:
        config: Gives the usual number of rows, by which sums are divided so that the loss, and
            gradients in half precision, have the size of a mean.
        model: Built.
        optimizer: A `syncbn.DistributedOptimizer`.
        communicator: Where the ranks meet.
        replicas: Those of this process.
        micro_batches: Pieces each batch is computed in, one after the other, to save memory. The
            optimizer sees the same global batch; batch normalization sees the pieces.

    Attributes:
        guard: Leaves out updates that are not finite; None with `--on-nan ignore`, and where a
            strategy sums the gradients behind the optimizer.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: keras.Model,
        optimizer: Any,
        communicator: Communicator,
        replicas: Replicas,
        micro_batches: int = 1,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._communicator = communicator
        self._batch_size = config.batch_size
        self._unit = float(config.batch_size)
        self._smoothing = config.label_smoothing
        self._micro_batches = micro_batches
        self.guard: UpdateGuard | None = None
        self._left_out = 0.0
        if config.on_nan != "ignore" and replicas.count == 1:
            self.guard = UpdateGuard(optimizer, thorough=config.on_nan == "skip")
            self.guard.attach()
        batch = [
            tf.TensorSpec([None, *model.input_shape[1:]], tf.float32),
            tf.TensorSpec([None], tf.int32),
        ]
        self._evaluate = replicas.compiled(self._evaluation_body, batch)
        if micro_batches == 1:
            step = [*batch, tf.TensorSpec([])]
            self._train = replicas.compiled(self._train_body, step)
            self._train_on_nothing = replicas.compiled(self._train_on_nothing_body, step)
        else:
            self._sums = [
                tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)
                for variable in model.trainable_variables
            ]
            self._accumulate = replicas.compiled(self._accumulate_body, batch)
            self._accumulate_nothing = replicas.compiled(self._accumulate_nothing_body, batch)
            self._finish = replicas.compiled(self._finish_body, [tf.TensorSpec([4])])

    def train(
        self, features: np.ndarray, labels: np.ndarray, stop: bool, fewest_rows: int
    ) -> list[float]:
        """One optimizer step over all ranks.

        Args:
            features: This process' rows, (rows, *shape).
            labels: (rows,).
            stop: Whether this rank was asked to stop; it travels with the losses, so that all ranks
                learn of it at the same step.
            fewest_rows: Of any rank in this step. No piece shall be empty, and as many pieces there
                must be on every rank, for each is a collective.

        Returns:
            STATUS, summed over the ranks.
        """
        empty = len(labels) == 0
        if empty:
            features = np.zeros((self._batch_size, *features.shape[1:]), np.float32)
            labels = np.full(self._batch_size, _NO_LABEL, np.int32)
        if self._micro_batches == 1:
            step = self._train_on_nothing if empty else self._train
            *status, left_out = step(features, labels, tf.constant(float(stop))).tolist()
        else:
            before = [(v, v.numpy()) for v in self._statistics]
            count = min(self._micro_batches, max(1, fewest_rows))
            *status, left_out = self._train_in_pieces(features, labels, stop, count, empty)
            if left_out > self._left_out:
                for variable, value in before:
                    variable.assign(value)
        left_out, self._left_out = left_out - self._left_out, left_out
        return [*status, left_out]

    @property
    def hopeless(self) -> str | None:
        """Why loss scaling no longer helps; None as long as it may."""
        return None if self.guard is None else self.guard.hopeless

    @property
    def _statistics(self) -> list[Any]:
        """What the forward pass moves."""
        if self.guard is None:
            return []
        return [v for v in self._model.non_trainable_variables if "float" in v.dtype]

    def _train_in_pieces(
        self, features: np.ndarray, labels: np.ndarray, stop: bool, count: int, empty: bool
    ) -> list[float]:
        pieces = zip(np.array_split(features, count), np.array_split(labels, count), strict=True)
        accumulate = self._accumulate_nothing if empty else self._accumulate
        sums = np.sum([accumulate(*piece) for piece in pieces], axis=0)
        return self._finish(tf.constant([*sums, float(stop)], tf.float32)).tolist()

    def evaluate(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Σ loss, Σ correct and rows of this process' batch, without any communication."""
        return self._evaluate(features, labels)

    def _train_body(self, features: tf.Tensor, labels: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        with self._kept():
            gradients, sums = self._gradients(features, labels)
            self._apply(gradients, sums[2])
        return self._over_ranks(tf.concat([sums, [stop]], axis=0))

    def _train_on_nothing_body(
        self, features: tf.Tensor, labels: tf.Tensor, stop: tf.Tensor
    ) -> tf.Tensor:
        """The collectives of `_train_body`; the rows are there for the shapes of tensors only."""
        with self._kept():
            gradients, sums = self._gradients_of_nothing(features, labels)
            self._apply(gradients, sums[2])
        return self._over_ranks(tf.concat([sums, [stop]], axis=0))

    def _kept(self) -> AbstractContextManager[None]:
        """Within it, statistics go back if the update is left out."""
        return nullcontext() if self.guard is None else self.guard.keeping(self._statistics)

    def _accumulate_nothing_body(self, features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return self._accumulated(*self._gradients_of_nothing(features, labels))

    def _gradients_of_nothing(
        self, features: tf.Tensor, labels: tf.Tensor
    ) -> tuple[list[Any], tf.Tensor]:
        # False, which TensorFlow must not know before run time: it would leave out of the graph
        # what comes to nothing, and with it collectives that the other ranks wait in.
        here = tf.reduce_any(labels != _NO_LABEL)
        with rows_count_only_if(here):
            gradients, sums = self._gradients(features, labels)
        for index, variable in enumerate(self._model.trainable_variables):
            if gradients[index] is not None:
                dense = densify(gradients[index], variable)
                gradients[index] = tf.where(here, dense, tf.zeros_like(dense))
        return gradients, tf.where(here, sums, tf.zeros_like(sums))

    def _accumulate_body(self, features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return self._accumulated(*self._gradients(features, labels))

    def _accumulated(self, gradients: list[Any], sums: tf.Tensor) -> tf.Tensor:
        for total, gradient, variable in zip(
            self._sums, gradients, self._model.trainable_variables, strict=True
        ):
            total.assign_add(densify(gradient, variable))
        return sums

    def _finish_body(self, status: tf.Tensor) -> tf.Tensor:
        self._apply([tf.identity(total) for total in self._sums], status[2])
        for total in self._sums:
            total.assign(tf.zeros_like(total))
        return self._over_ranks(status)

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
        left_out = 0.0 if self.guard is None else tf.cast(self.guard.left_out, tf.float32)
        return tf.concat([status, [left_out]], axis=0)

    def _evaluation_body(self, features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        logits = self._model(features, training=False)
        losses = cross_entropy(labels, logits)
        rows = tf.cast(tf.shape(labels)[0], tf.float32)
        return tf.stack([tf.reduce_sum(losses), correct(labels, logits), rows])


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Softmax cross-entropy of each row, (rows,) float32; labels are class numbers."""
    classes = logits.shape[-1]
    targets = tf.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32))


def correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """How many rows have their largest logit at the label, a float32 scalar."""
    guesses = tf.argmax(logits, axis=-1, output_type=labels.dtype)
    return tf.reduce_sum(tf.cast(guesses == labels, tf.float32))
