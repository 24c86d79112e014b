"""NonFiniteGuard: what `fit` does when a loss or a gradient is NaN or infinite."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import keras
import tensorflow as tf

from syncbn.communicators.base import Communicator
from syncbn.errors import NonFiniteError
from syncbn.origins import find_origin
from syncbn.ranks_callback import RanksCallback
from syncbn.update_guard import UpdateGuard, with_defect

OnNan = Literal["stop", "skip"]

MOST_SKIPS = 10
ADVICE = (
    "The usual cure: a lower learning rate, a longer warm-up, clipped gradients (clipnorm), or "
    "data without NaN"
)


class NonFiniteGuard(RanksCallback):
    """Keeps updates that are not finite out of the model, and stops training, or goes on.

    When the loss or a gradient of any rank is NaN or infinite, no rank makes that update: weights,
    moving statistics, metrics and the optimizer stay as the step before has left them. All ranks
    know it at the same step without another message, for what they look at are the averaged
    gradients. With `on_nan="stop"` these are the ones of up to 65,536 elements, which costs next to
    nothing; with `"skip"` all.

    A `LossScaleOptimizer` skips infinite gradients by itself and lowers its scale. It is left to,
    until no scale helps any more.

    Stands before callbacks that save. Turns XLA off for the model.

    Args:
        on_nan: `"stop"` to end training at the first such step, `"skip"` to go on without it.
        most_skips: The updates in a row after which `"skip"` stops too.
        communicator: None for `syncbn.communicator()`.

    Attributes:
        skipped: Updates left out since training began.

    Raises:
        ValueError: An argument is out of range.
        syncbn.errors.NonFiniteError: From the step, on all ranks alike; the text names the step,
            the batch, variable or layer that was not finite first, and its ranks.
    """

    def __init__(
        self,
        on_nan: OnNan = "stop",
        most_skips: int = MOST_SKIPS,
        communicator: Communicator | None = None,
    ) -> None:
        super().__init__(communicator)
        if on_nan not in get_args(OnNan):
            raise ValueError(f'on_nan must be "stop" or "skip". Received: on_nan={on_nan!r}')
        if most_skips < 1:
            raise ValueError(f"most_skips must be at least 1. Received: most_skips={most_skips!r}")
        self._on_nan = on_nan
        self._most_skips = most_skips
        self._guard: UpdateGuard | None = None
        self._undo: Callable[[], None] = lambda: None
        self._batch: Any = None
        self._loss: Any = 0.0
        self._steps = self._in_a_row = 0
        self.skipped = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._detach()
        self._guard = UpdateGuard(self.model.optimizer, thorough=self._on_nan == "skip")
        self._steps = self._in_a_row = self.skipped = 0
        self._batch = None
        self._attach(self._guard)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        guard = self._guard
        if guard is None:
            return
        self._steps += 1
        fresh = int(guard.left_out) - self.skipped
        self.skipped += fresh
        self._in_a_row = self._in_a_row + fresh if fresh else 0
        reason = guard.hopeless
        if reason is not None:
            pass
        elif fresh and self._on_nan == "stop":
            reason = f"{self._cause(guard)}; that update was not made"
        elif self._in_a_row >= self._most_skips:
            reason = f"{self._cause(guard)}; {self._in_a_row} updates in a row were not made"
        if reason is not None:
            self._detach()  # an exception ends `fit` without on_train_end
            raise NonFiniteError(f"step {self._steps} is not finite: {reason}. {ADVICE}")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._detach()

    def _attach(self, guard: UpdateGuard) -> None:
        """Guards the optimizer, and what the forward pass moves, in the steps that come."""
        model, optimizer = self.model, self.model.optimizer
        guard.attach()
        scale_loss, apply, train_step = optimizer.scale_loss, optimizer.apply, model.train_step
        losses: list[tf.Tensor] = []  # of the step that is traced, or runs eagerly

        def noted_loss(loss: tf.Tensor) -> tf.Tensor:
            losses[:] = [loss]
            return scale_loss(loss)

        def noted_apply(grads: Any, trainable_variables: Any = None, **options: Any) -> None:
            for loss in losses:
                grads = with_defect(grads, loss)
            apply(grads, trainable_variables, **options)

        def guarded_train_step(data: Any) -> Any:
            losses.clear()
            state = [*model.non_trainable_variables, *model.metrics_variables]
            with guard.keeping(state, self._keeper(data, losses)):
                return train_step(data)

        own = vars(model).get("train_step")

        def undo() -> None:
            guard.detach()
            for name in ("scale_loss", "apply"):
                vars(optimizer).pop(name, None)
            model.__dict__.pop("train_step")
            if own is not None:  # of `weigh_rows`, for one
                model.train_step = own
            model.make_train_function(force=True)

        # Past the tracking of Keras' own __setattr__, which is for state.
        object.__setattr__(optimizer, "scale_loss", noted_loss)
        object.__setattr__(optimizer, "apply", noted_apply)
        model.train_step = guarded_train_step
        # A batch of any shape cannot be kept in a graph compiled by XLA.
        model.jit_compile = False
        model.make_train_function(force=True)
        self._undo = undo

    def _detach(self) -> None:
        if self._guard is not None:
            self._guard = None
            self._undo()

    def _keeper(self, data: Any, losses: list[tf.Tensor]) -> Callable[[], None]:
        """Keeps the batch whose update is left out, and its loss, to look for the cause with."""
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        tensors = tf.nest.flatten(inputs)
        if not all(isinstance(tensor, tf.Tensor) for tensor in tensors):
            return lambda: None
        if self._batch is None:
            with tf.init_scope(), tf.device("CPU:0"):
                kept = [
                    tf.Variable(tf.zeros([], t.dtype), False, shape=tf.TensorShape(None))
                    for t in tensors
                ]
                self._loss = tf.Variable(0.0, trainable=False)
            self._batch = tf.nest.pack_sequence_as(inputs, kept)

        def keep() -> None:
            for loss in losses:
                self._loss.assign(tf.cast(loss, tf.float32))
            for variable, tensor in zip(tf.nest.flatten(self._batch), tensors, strict=True):
                variable.assign(tensor)

        return keep

    def _cause(self, guard: UpdateGuard) -> str:
        """Where the newest update left out was not finite first. A collective call."""
        if self._batch is not None:
            inputs = tf.nest.map_structure(lambda variable: variable.read_value(), self._batch)
            origin = find_origin(self.model, inputs, self.ranks, self._loss)
            if origin is not None:
                return str(origin)
        return gradient_cause(guard)


def gradient_cause(guard: UpdateGuard) -> str:
    """For where every layer's output is finite: the gradient that was not."""
    suspects = [v for v, bad in zip(guard.watched, guard.suspects.numpy(), strict=True) if bad]
    # On the way back the last variable comes first.
    return (
        f"the gradient of {suspects[-1].path} is not finite"
        if suspects
        else "its loss is NaN or infinite"
    )
