"""DistributedOptimizer: gradients averaged over the ranks for any Keras 3 optimizer.

It uses communicators only; Horovod's Keras classes fail on Keras 3 or do not average.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import keras
import tensorflow as tf

from syncbn import consistency, dispatch, telemetry
from syncbn.communicators import communicator as current_communicator
from syncbn.communicators import resolve
from syncbn.communicators.base import Communicator
from syncbn.gradient_accumulator import GradientAccumulator
from syncbn.gradients import (
    Gradient,
    densify,
    divide,
    keras_reduces,
    presence_of,
    reduce_gradients,
    wire_dtype,
)

_serial = itertools.count()


class _Distributed:
    """Mixin that `DistributedOptimizer` puts before the class of an optimizer."""

    _communicator: Communicator | None
    _collective: str
    _passes: int
    _pass_sums: GradientAccumulator | None
    _average: bool
    _wire: tf.DType | None
    _rows: tf.Tensor | None
    _weighs_rows: bool
    # Set by `callbacks.WarmUpLearningRate`: the rate of one rank, and the scaled rate.
    _warm_up: tuple[float, float] | None

    def get_config(self) -> dict[str, Any]:
        distributed = type(self)
        plain = distributed.__mro__[2]
        object.__setattr__(self, "__class__", plain)
        try:
            optimizer = keras.saving.serialize_keras_object(self)
        finally:
            object.__setattr__(self, "__class__", distributed)
        return {
            "optimizer": optimizer,
            "backward_passes_per_step": self._passes,
            "compression": None if self._wire is None else self._wire.name,
            "average": self._average,
            "weigh_rows": self._weighs_rows,
            "warm_up": self._warm_up,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> keras.optimizers.Optimizer:
        config = dict(config)
        inner = keras.saving.deserialize_keras_object(
            config.pop("optimizer"), custom_objects=custom_objects
        )
        weighs_rows, warm_up = config.pop("weigh_rows"), config.pop("warm_up")
        optimizer = DistributedOptimizer(inner, **config)
        object.__setattr__(optimizer, "_weighs_rows", weighs_rows)
        object.__setattr__(optimizer, "_warm_up", None if warm_up is None else tuple(warm_up))
        return optimizer

    def build(self, variables: Sequence[Any]) -> None:
        outer = sys._getframe(1).f_locals.get("self")
        if outer is not self and isinstance(outer, keras.optimizers.LossScaleOptimizer):
            # compile() wraps the optimizer like this under the mixed_float16 policy.
            object.__setattr__(outer, "check_finite", self._finite_everywhere)
        super().build(variables)  # type: ignore[misc]
        self._add_pass_state(variables)

    @tf.autograph.experimental.do_not_convert
    def _finite_everywhere(self, grads: Sequence[Gradient]) -> tf.Tensor:
        """`LossScaleOptimizer.check_finite` over all ranks, before gradients are averaged.

        Ranks with different results would take different branches and hang.
        """
        values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in grads]
        here = tf.reduce_all([tf.reduce_all(tf.math.is_finite(v)) for v in values if v is not None])
        communicator = self._communicator or current_communicator()
        infinite = tf.cast(tf.logical_not(here), tf.int32)
        return communicator.all_reduce(infinite, f"{self._collective}_infinite") == 0

    def _add_pass_state(self, variables: Sequence[Any]) -> None:
        if self._passes > 1 and self._pass_sums is None:
            # Bypasses Keras' __setattr__, since add_variable tracks the variables already.
            sums = GradientAccumulator(variables, self.add_variable)  # type: ignore[attr-defined]
            object.__setattr__(self, "_pass_sums", sums)

    @contextmanager
    def weighted(self, rows: Any) -> Iterator[None]:
        """Context in which `scale_loss` and `apply` weight this rank's mean loss by `rows`."""
        self._rows = tf.cast(rows, tf.float32)
        try:
            yield
        finally:
            self._rows = None

    @tf.autograph.experimental.do_not_convert
    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        if self._rows is not None and not keras_reduces():
            # Scales the loss, not the gradient: the backward pass of synchronized layers sums over
            # the rows of all ranks, and each row must have the same weight there.
            loss = loss * tf.cast(self._rows, loss.dtype)
        return super().scale_loss(loss)  # type: ignore[misc]

    @tf.autograph.experimental.do_not_convert
    def apply_gradients(self, grads_and_vars: Iterable[Any], rows: Any = None) -> Any:
        gradients, variables = zip(*grads_and_vars, strict=True)
        self.apply(gradients, variables, rows=rows)
        return self.iterations  # type: ignore[attr-defined]

    @tf.autograph.experimental.do_not_convert
    def apply(
        self,
        grads: Sequence[Gradient],
        trainable_variables: Sequence[Any] | None = None,
        rows: Any = None,
    ) -> None:
        """Averages `grads` over the ranks, then applies them.

        Args:
            grads: One gradient per variable: dense, `IndexedSlices`, or None.
            trainable_variables: The variables; None for those the optimizer was built with.
            rows: The weight of this rank, if batch sizes differ: the number of rows if the loss is
                summed over rows, that number divided by c if the sum is divided by c. None weights
                all ranks equally.
        """
        if keras_reduces():
            if rows is not None:
                replicas = resolve("auto")
                total = replicas.all_reduce(tf.cast(rows, tf.float32), f"{self._collective}_rows")
                grads = [None if g is None else divide(g, total) for g in grads]
            self._update(list(grads), trainable_variables)
            return
        communicator = self._communicator or current_communicator()
        weight = self._rows if rows is None else tf.cast(rows, tf.float32)
        if weight is None and self._weighs_rows:
            raise ValueError(
                "this optimizer weighs each rank by its rows, but its model does not pass their "
                "number: call syncbn.weigh_rows(model) after loading or cloning a model "
                "(syncbn.load_model does so), or call apply_gradients(..., rows=n)"
            )
        if communicator.size == 1 and self._passes == 1 and weight is None:
            self._update(list(grads), trainable_variables)
            return
        if dispatch.inside_xla():
            raise ValueError(
                "Gradients cannot be averaged inside a graph compiled by XLA: call compile(..., "
                "jit_compile=False) (syncbn.callbacks.BroadcastVariables does so for fit)"
            )
        if trainable_variables is None:
            trainable_variables = self._trainable_variables  # type: ignore[attr-defined]
        variables = list(trainable_variables)
        if not self.built:  # type: ignore[has-type]
            self.build(variables)
            self.built = True
        weight = tf.ones([]) if weight is None else weight
        dense = [densify(g, v) for g, v in zip(grads, variables, strict=True)]
        presence = presence_of(grads)

        def step(summed: list[tf.Tensor], presence: tf.Tensor, weights: tf.Tensor) -> None:
            self._reduce_and_apply(summed, presence, weights, variables, communicator)

        sums = self._pass_sums
        if sums is None:
            step(dense, presence, weight)
        else:
            indices = [self._get_variable_index(v) for v in variables]  # type: ignore[attr-defined]
            added = sums.add(dense, indices, presence, weight)
            tf.cond(added == self._passes, lambda: sums.apply(indices, step), lambda: None)

    def _update(self, gradients: list[Gradient], variables: Sequence[Any] | None) -> None:
        telemetry.note_norm("gradient_norm", gradients)
        super().apply(gradients, variables)  # type: ignore[misc]

    def _reduce_and_apply(
        self,
        gradients: list[tf.Tensor],
        presence: tf.Tensor,
        weight: tf.Tensor,
        variables: list[Any],
        communicator: Communicator,
    ) -> None:
        reduced = reduce_gradients(
            gradients, presence, weight, communicator, self._collective, self._average, self._wire
        )
        here = tf.get_static_value(presence)
        # Keras does not update a variable without gradient, not even by weight decay. The same
        # holds here if no rank has a gradient; a rank that has one need not check.
        missing = [
            (
                variable,
                index,
                tf.identity(variable.value if isinstance(variable, keras.Variable) else variable),
            )
            for index, variable in enumerate(variables)
            if here is None or not here[index]
        ]
        with consistency.averaged(self._collective, communicator):
            self._update(reduced.gradients, variables)
        for variable, index, before in missing:
            variable.assign(tf.where(reduced.presence[index] > 0, variable, before))


def DistributedOptimizer(  # noqa: N802 - a class to its users, as in Horovod
    optimizer: keras.optimizers.Optimizer | str,
    communicator: Communicator | None = None,
    backward_passes_per_step: int = 1,
    compression: str | None = None,
    average: bool = True,
) -> keras.optimizers.Optimizer:
    """Makes a Keras 3 optimizer average gradients over the ranks before it applies them.

    Gradients are reduced in one all-reduce per dtype, before clipping, loss unscaling and the
    update. Works in `fit`, `train_on_batch` and custom loops. If batch sizes differ between ranks,
    use the gradient of the loss summed over rows with `apply_gradients(..., rows=n)`, or, for
    `fit`, call `weigh_rows(model)`.

    Inside `strategy.run` of tf.distribute with several replicas Keras itself sums the gradients
    (its loops divide the loss by the number of replicas), and only `rows` has an effect.

    Args:
        optimizer: Any Keras 3 optimizer, built or not, or its name (`"adam"`). It may wrap or be
            wrapped by a `LossScaleOptimizer`, as `compile` does under `mixed_float16`.
        communicator: None for `syncbn.communicator()`.
        backward_passes_per_step: Number of calls whose gradients are accumulated locally before one
            reduction and one update; `iterations` counts updates.
        compression: `"float16"` or `"bfloat16"` to send half-precision gradients, or None.
        average: False to sum over ranks (and passes) instead.

    Returns:
        The same object, now of a class derived from its own, so `isinstance` still works. It stays
        distributed in a saved model; `syncbn` must be imported before the model is loaded.

    Raises:
        TypeError: `optimizer` is not a Keras 3 optimizer.
        ValueError: Another argument is out of range, or `optimizer` is distributed already.
    """
    if isinstance(optimizer, str):
        optimizer = keras.optimizers.get(optimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"optimizer must be a Keras 3 optimizer. Received: optimizer={optimizer!r}")
    if is_distributed(optimizer):
        raise ValueError("optimizer is already distributed: wrap it once")
    if isinstance(backward_passes_per_step, bool) or backward_passes_per_step < 1:
        raise ValueError(
            "backward_passes_per_step must be a whole number of at least 1. "
            f"Received: backward_passes_per_step={backward_passes_per_step!r}"
        )
    wire = wire_dtype(compression)
    # Bypasses Keras' __setattr__, which tracks state.
    for name, value in {
        "__class__": _derived(type(optimizer)),  # type: ignore[arg-type]
        "_communicator": communicator,
        "_collective": f"gradients_{next(_serial)}",
        "_passes": backward_passes_per_step,
        "_pass_sums": None,
        "_average": average,
        "_wire": wire,
        "_rows": None,
        "_weighs_rows": False,
        "_warm_up": None,
    }.items():
        object.__setattr__(optimizer, name, value)
    if optimizer.built:
        optimizer._add_pass_state(optimizer._trainable_variables)
    return optimizer


def is_distributed(optimizer: Any) -> bool:
    """Whether `DistributedOptimizer` has made `optimizer`."""
    return isinstance(optimizer, _Distributed)


@cache
def _derived(plain: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """`plain` with averaging. All derived classes are saved under one name."""
    derived = type("DistributedOptimizer", (_Distributed, plain), {"__module__": __name__})
    keras.saving.register_keras_serializable("syncbn", "DistributedOptimizer")(derived)
    return derived


# Registers the name, so that files can be loaded before any optimizer is distributed.
_derived(keras.optimizers.SGD)
