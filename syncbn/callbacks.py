"""Keras callbacks for data-parallel `fit`: equal starts, global metrics, warm-up, alarms."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from syncbn import consistency
from syncbn.broadcast import (
    broadcast_variables,
    build_by_tracing,
    check_equal_steps,
    differs,
    everywhere,
    is_built,
)
from syncbn.communicators.base import Communicator
from syncbn.errors import DivergenceError
from syncbn.fingerprints import checksum
from syncbn.non_finite import NonFiniteGuard
from syncbn.ranks_callback import RanksCallback

__all__ = [
    "AverageMetrics",
    "BroadcastVariables",
    "DivergenceAlarm",
    "NonFiniteGuard",
    "WarmUpLearningRate",
]


class BroadcastVariables(RanksCallback):
    """Gives all ranks the weights, seeds and optimizer state of one, when training begins.

    A model that Keras builds in `fit` (a `Sequential` without `Input`, a subclassed model) is built
    right before its first step, by tracing that step once without running it. Where this cannot be
    done (`run_eagerly` with a step that needs numbers), the variables are broadcast after the first
    step instead.

    It also turns XLA off for the model, which `jit_compile="auto"` may have chosen on a GPU: the
    collectives of most engines cannot be compiled.

    Args:
        root_rank: The rank whose values count, such as the one that loaded a checkpoint.
        communicator: None for `syncbn.communicator()`.

    Raises:
        syncbn.errors.WorldError: When training begins, on all ranks alike: their models differ in
            shape, or their epochs in steps, where Keras knows them.
        syncbn.errors.DivergenceError: On all ranks alike: the weights differ all the same.
    """

    def __init__(self, root_rank: int = 0, communicator: Communicator | None = None) -> None:
        super().__init__(communicator)
        self._root_rank = root_rank

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        if self.ranks.size > 1 and not self.ranks.jit_compatible:
            model.jit_compile = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        ranks = self.ranks
        check_equal_steps(self.params.get("steps"), ranks)
        if ranks.size == 1:
            return
        if everywhere(is_built(self.model), ranks):
            self._broadcast()
        else:
            self._broadcast_before_the_first_step()

    def _broadcast(self) -> None:
        optimizer = self.model.optimizer
        if differs(optimizer is not None and optimizer.built, self.ranks) and not optimizer.built:
            # A rank has loaded a checkpoint; the others have an optimizer without state yet.
            optimizer.build(self.model.trainable_variables)
        broadcast_variables(self.model, self._root_rank, self.ranks)
        check_divergence(self.model, 0, self.ranks)

    def _broadcast_before_the_first_step(self) -> None:
        model = self.model
        run = getattr(model.train_function, "_first_step_of", model.train_function)

        def first_step(iterator: Any) -> Any:
            model.train_function = run
            if everywhere(build_by_tracing(model, iterator.element_spec), self.ranks):
                self._broadcast()
                return run(iterator)
            with consistency.paused():  # the ranks become equal after this step
                logs = run(iterator)
            self._broadcast()
            return logs

        first_step._first_step_of = run  # type: ignore[attr-defined]
        model.train_function = first_step


class AverageMetrics(RanksCallback):
    """Makes the logs of each epoch those of all samples on all ranks.

    The sums and counts that make up each metric are added over the ranks, so that a metric is
    weighted by rows and not by rank, and is exact for accuracy, AUC, precision and every other
    Keras metric that keeps sums. Stands before callbacks that read the logs (early stopping,
    checkpoints on the best value).

    `evaluate` on its own returns what it computed before any callback was asked, so this rank's
    part: read `model.get_metrics_result()` after it instead.

    Args:
        communicator: None for `syncbn.communicator()`.
    """

    def __init__(self, communicator: Communicator | None = None) -> None:
        super().__init__(communicator)
        self._training: dict[str, Any] | None = None
        self._validation: dict[str, Any] = {}
        self._in_fit = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._in_fit = True

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._training, self._validation = None, {}

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        # Keras evaluates with the same metrics: this is the last moment of the training ones.
        if self._in_fit and self._training is None:
            self._training = self._over_ranks()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        values = self._over_ranks(keep=not self._in_fit)
        self._validation = {f"val_{name}": value for name, value in values.items()}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._training is None:
            self._training = self._over_ranks()
        if logs is not None:
            logs.update(self._training | self._validation)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._in_fit = False

    def _over_ranks(self, keep: bool = False) -> dict[str, Any]:
        """The metrics' results from the summed states, which stay this rank's unless kept."""
        states = [variable for metric in self.model.metrics for variable in metric.variables]
        mine = [tf.identity(state.value) for state in states]
        sums = self.ranks.all_reduce_many(mine, "metrics")
        for state, total in zip(states, sums, strict=True):
            state.assign(total)
        results = {name: _number(value) for name, value in self.model.get_metrics_result().items()}
        for state, value in zip(states, () if keep else mine, strict=not keep):
            state.assign(value)
        return results


class WarmUpLearningRate(RanksCallback):
    """Raises the learning rate linearly from its base to base × world size, step by step.

    The linear scaling rule with gradual warm-up of Goyal et al., 2017,
    https://arxiv.org/abs/1706.02677. Afterwards the rate is left to other callbacks.

    Args:
        epochs: How long the rise takes; a fraction is allowed, 0 scales at once.
        base: The rate for one rank; None for the optimizer's own when training begins.
        steps_per_epoch: Needed only where Keras does not know it (a generator).
        communicator: None for `syncbn.communicator()`.

    Raises:
        ValueError: When training begins: the optimizer's rate is a schedule, or the steps of an
            epoch are unknown.
    """

    def __init__(
        self,
        epochs: float = 5,
        base: float | None = None,
        steps_per_epoch: int | None = None,
        communicator: Communicator | None = None,
    ) -> None:
        super().__init__(communicator)
        if epochs < 0:
            raise ValueError(f"epochs must not be negative. Received: epochs={epochs!r}")
        self._epochs = epochs
        self._base = base
        self._steps = steps_per_epoch
        self._epoch = 0
        self._done = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        plain = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if not isinstance(plain._learning_rate, keras.Variable):
            raise ValueError(
                "WarmUpLearningRate needs an optimizer with a number for learning_rate. "
                f"Received: learning_rate={plain._learning_rate!r}"
            )
        self._steps = self._steps or self.params.get("steps")
        if not self._steps:
            raise ValueError(
                "the steps of an epoch are unknown here: give WarmUpLearningRate(steps_per_epoch=n)"
            )
        if self._base is None:
            self._base = self._rate_of_one_rank()
        self._done = False

    def _rate_of_one_rank(self) -> float:
        """The rate from before an earlier warm-up, if it still stands as that one has left it."""
        optimizer = self.model.optimizer
        rate = float(optimizer.learning_rate)
        base, raised = getattr(optimizer, "_warm_up", None) or (rate, rate)
        return base if raised == rate else rate

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._done or self._base is None or not self._steps:
            return
        progress = self._epoch + batch / self._steps
        part = 1.0 if progress >= self._epochs else progress / self._epochs
        optimizer = self.model.optimizer
        optimizer.learning_rate = self._base * (1 + (self.ranks.size - 1) * part)
        # For the next `fit`, or after loading: not to be raised twice.
        object.__setattr__(optimizer, "_warm_up", (self._base, float(optimizer.learning_rate)))
        self._done = part == 1.0


class DivergenceAlarm(RanksCallback):
    """Stops the job when the weights or moving statistics of the ranks are no longer equal.

    Every rank hashes each variable and all compare the hashes; a single differing bit is found. The
    moving statistics of batch normalization layers that are not synchronized are passed over.

    Args:
        every: Steps between two looks.
        communicator: None for `syncbn.communicator()`.

    Raises:
        syncbn.errors.DivergenceError: On all ranks alike, from the step that looks; the text names
            the first variable that differs, and the ranks.
    """

    def __init__(self, every: int = 100, communicator: Communicator | None = None) -> None:
        super().__init__(communicator)
        if every < 1:
            raise ValueError(f"every must be at least 1. Received: every={every!r}")
        self._every = every
        self._steps = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps += 1
        if self._steps % self._every == 0:
            check_divergence(self.model, self._steps, self.ranks)


def check_divergence(model: keras.Model, step: int, ranks: Communicator) -> None:
    """Compares all weights and synchronized statistics of `model` over the ranks, bit for bit.

    Raises:
        DivergenceError: See `DivergenceAlarm`.
    """
    if ranks.size == 1:
        return
    own = {id(variable) for layer in _local_norms(model) for variable in _statistics(layer)}
    compared = [variable for variable in model.weights if id(variable) not in own]
    hashes = np.zeros((ranks.size, len(compared)), np.int64)
    hashes[ranks.rank] = [checksum(variable) for variable in compared]
    table = ranks.all_reduce(tf.constant(hashes), "divergence").numpy()
    for variable, column in zip(compared, table.T.tolist(), strict=True):
        usual, agreeing = Counter(column).most_common(1)[0]
        if agreeing == ranks.size:
            continue
        odd = [rank for rank, value in enumerate(column) if value != usual]
        raise DivergenceError(
            f"the ranks no longer train one model: after step {step} {variable.path} differs on "
            f"rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd))} from the other "
            f"{ranks.size - len(odd)}. Is every gradient averaged (DistributedOptimizer), and did "
            "all ranks start equal (BroadcastVariables)?"
        )


def _local_norms(layer: Any) -> Iterator[keras.layers.BatchNormalization]:
    for inner in getattr(layer, "layers", []):
        yield from _local_norms(inner)
    if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized:
        yield layer


def _statistics(layer: keras.layers.BatchNormalization) -> list[Any]:
    return list(layer.non_trainable_weights) if layer.trainable else []


def _number(value: Any) -> Any:
    array = np.asarray(value)
    return float(array) if array.ndim == 0 else array
