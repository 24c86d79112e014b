"""Keras callbacks for data-parallel `fit`: broadcast, metrics, warm-up and checks."""

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
    """Broadcasts weights, seeds and optimizer state of one rank when training begins.

    A model that Keras builds in `fit` (a `Sequential` without `Input`, a subclassed model) is built
    right before its first step, by tracing that step without running it. If it cannot be traced
    (`run_eagerly` with a step that reads values), the variables are broadcast after the first step.

    The callback also disables XLA for the model, which `jit_compile="auto"` may enable on a GPU:
    XLA cannot compile the collectives of most backends.

    Args:
        root_rank: The rank whose values are sent, for example the one that loaded a checkpoint.
        communicator: None for `syncbn.communicator()`.

    Raises:
        syncbn.errors.WorldError: When training begins, on every rank: the models differ in shape,
            or the number of steps per epoch, where Keras knows it, differs between ranks.
        syncbn.errors.DivergenceError: On every rank: the weights still differ after the broadcast.
    """

    def __init__(self, root_rank: int = 0, communicator: Communicator | None = None) -> None:
        super().__init__(communicator)
        self._root = root_rank

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        if self.communicator.size > 1 and not self.communicator.jit_compatible:
            model.jit_compile = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        communicator = self.communicator
        check_equal_steps(self.params.get("steps"), communicator)
        if communicator.size == 1:
            return
        if everywhere(is_built(self.model), communicator):
            self._broadcast()
        else:
            self._broadcast_before_the_first_step()

    def _broadcast(self) -> None:
        optimizer = self.model.optimizer
        built = optimizer is not None and optimizer.built
        if differs(built, self.communicator) and not built:
            # Another rank has loaded a checkpoint; this optimizer has no state yet.
            optimizer.build(self.model.trainable_variables)
        broadcast_variables(self.model, self._root, self.communicator)
        check_divergence(self.model, 0, self.communicator)

    def _broadcast_before_the_first_step(self) -> None:
        model = self.model
        run = getattr(model.train_function, "_first_step_of", model.train_function)

        def first_step(iterator: Any) -> Any:
            model.train_function = run
            if everywhere(build_by_tracing(model, iterator.element_spec), self.communicator):
                self._broadcast()
                return run(iterator)
            with consistency.paused():  # the broadcast follows this step
                logs = run(iterator)
            self._broadcast()
            return logs

        first_step._first_step_of = run  # type: ignore[attr-defined]
        model.train_function = first_step


class AverageMetrics(RanksCallback):
    """Replaces the logs of each epoch by metrics over all samples of all ranks.

    The state variables of each metric are summed over the ranks, so a metric is weighted by rows,
    not by rank, and exact for accuracy, AUC, precision and every other Keras metric whose state is
    a sum. Place it before callbacks that read the logs (early stopping, checkpoints of the best
    value). What a custom `train_step` returns without updating a metric remains that of this rank.

    `evaluate` returns its results before callbacks run, so they cover this rank only: read
    `model.get_metrics_result()` afterwards instead.

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
        # Keras resets the same metric objects for evaluation: read the training results first.
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
        """Results of the metrics over all ranks; the states are summed in place if `keep`."""
        metrics = list(self.model.metrics)
        states = [variable for metric in metrics for variable in metric.variables]
        mine = [tf.identity(state.value) for state in states]
        sums = self.communicator.all_reduce_many(mine, "metrics")
        for state, total in zip(states, sums, strict=True):
            state.assign(total)
        # A custom `train_step` may not update Keras' own metrics: what it returns under their names
        # remains in the logs.
        updated = [m for m in metrics if any(np.any(state.numpy()) for state in m.variables)]
        if len(updated) == len(metrics):
            results = self.model.get_metrics_result()
        else:
            results = {}
            for metric in updated:
                result = metric.result()
                results.update(result if isinstance(result, dict) else {metric.name: result})
        numbers = {name: _number(value) for name, value in results.items()}
        for state, value in zip(states, () if keep else mine, strict=not keep):
            state.assign(value)
        return numbers


class WarmUpLearningRate(RanksCallback):
    """Raises the learning rate linearly from `base` to `base` × world size, step by step.

    The linear scaling rule with gradual warm-up of Goyal et al., 2017,
    https://arxiv.org/abs/1706.02677. After the warm-up the callback leaves the rate unchanged.

    Args:
        epochs: Length of the warm-up; fractions are allowed, 0 scales immediately.
        base: Learning rate of one rank; None for the optimizer's own when training begins.
        steps_per_epoch: Required only if Keras does not know it (a generator).
        communicator: None for `syncbn.communicator()`.

    Raises:
        ValueError: When training begins: the optimizer's learning rate is a schedule, or the number
            of steps per epoch is unknown.
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
                "WarmUpLearningRate needs an optimizer with a number for learning_rate, not a "
                "schedule. "
                f"Received: learning_rate={plain._learning_rate!r}"
            )
        self._steps = self._steps or self.params.get("steps")
        if not self._steps:
            raise ValueError(
                "the number of steps per epoch is unknown: "
                "use WarmUpLearningRate(steps_per_epoch=n)"
            )
        if self._base is None:
            self._base = self._rate_of_one_rank()
        self._done = False

    def _rate_of_one_rank(self) -> float:
        """The rate before an earlier warm-up, if the rate has not changed since that warm-up."""
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
        optimizer.learning_rate = self._base * (1 + (self.communicator.size - 1) * part)
        # The next `fit`, possibly after loading, must not scale the rate again.
        object.__setattr__(optimizer, "_warm_up", (self._base, float(optimizer.learning_rate)))
        self._done = part == 1.0


class DivergenceAlarm(RanksCallback):
    """Stops the job when weights or moving statistics differ between ranks.

    Every rank hashes each variable, and all ranks compare the hashes: a single differing bit is
    detected. Moving statistics of layers that are not synchronized are ignored.

    Args:
        every: Steps between two comparisons.
        communicator: None for `syncbn.communicator()`.

    Raises:
        syncbn.errors.DivergenceError: On every rank, at the step of the comparison; the message
            names the first variable that differs, and the ranks.
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
            check_divergence(self.model, self._steps, self.communicator)


def check_divergence(model: keras.Model, step: int, communicator: Communicator) -> None:
    """Compares all weights and synchronized statistics of `model` over the ranks, bit for bit.

    Raises:
        DivergenceError: See `DivergenceAlarm`.
    """
    if communicator.size == 1:
        return
    local = {id(variable) for layer in _local_norms(model) for variable in _statistics(layer)}
    compared = [variable for variable in model.weights if id(variable) not in local]
    hashes = np.zeros((communicator.size, len(compared)), np.int64)
    hashes[communicator.rank] = [checksum(variable) for variable in compared]
    table = communicator.all_reduce(tf.constant(hashes), "divergence").numpy()
    for variable, column in zip(compared, table.T.tolist(), strict=True):
        usual, agreeing = Counter(column).most_common(1)[0]
        if agreeing == communicator.size:
            continue
        odd = [rank for rank, value in enumerate(column) if value != usual]
        raise DivergenceError(
            f"the ranks no longer train one model: after step {step} {variable.path} differs on "
            f"rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd))} from the other "
            f"{communicator.size - len(odd)}. Check that every gradient is averaged "
            "(DistributedOptimizer) and that all ranks start equal (BroadcastVariables)"
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
