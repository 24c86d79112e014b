"""NonFiniteGuard: handles losses and gradients in `fit` that are NaN or infinite."""

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
    "Usual remedies: a lower learning rate, a longer warm-up, gradient clipping (clipnorm), or "
    "data without NaN"
)


class NonFiniteGuard(RanksCallback):
    """Skips updates that are not finite, and stops or continues training.

    If the loss or a gradient of any rank is NaN or infinite, no rank applies the update: weights,
    moving statistics, metrics and optimizer keep their values from before the step. All ranks
    detect it at the same step without additional communication, because they check the averaged
    gradients: with `on_nan="stop"` those of up to 65,536 elements, at negligible cost, with
    `"skip"` all.

    A `LossScaleOptimizer` skips infinite gradients itself and lowers its scale; the guard steps in
    only when gradients still overflow at a very low scale.

    Place it before callbacks that save. Disables XLA for the model.

    Args:
        on_nan: `"stop"` to end training at the first such step, `"skip"` to continue without it.
        most_skips: The number of consecutive skipped updates at which `"skip"` stops, too.
        communicator: None for `syncbn.communicator()`.

    Attributes:
        skipped: Number of updates skipped since training began.

    Raises:
        ValueError: An argument is out of range.
        syncbn.errors.NonFiniteError: At the step, on every rank; the message names the step, the
            first batch, variable or layer that is not finite, and the ranks.
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
        self._steps = self._consecutive = 0
        self.skipped = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._detach()
        self._guard = UpdateGuard(self.model.optimizer, thorough=self._on_nan == "skip")
        self._steps = self._consecutive = self.skipped = 0
        self._batch = None
        self._attach(self._guard)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        guard = self._guard
        if guard is None:
            return
        self._steps += 1
        fresh = int(guard.left_out) - self.skipped
        self.skipped += fresh
        self._consecutive = self._consecutive + fresh if fresh else 0
        reason = guard.hopeless
        if reason is not None:
            pass
        elif fresh and self._on_nan == "stop":
            reason = f"{self._cause(guard)}; that update was not made"
        elif self._consecutive >= self._most_skips:
            reason = f"{self._cause(guard)}; {self._consecutive} updates in a row were not made"
        if reason is not None:
            self._detach()  # `fit` does not call on_train_end after an exception
            raise NonFiniteError(f"step {self._steps} is not finite: {reason}. {ADVICE}")

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._detach()

    def _attach(self, guard: UpdateGuard) -> None:
        """Guards the optimizer, and variables that the forward pass updates, in later steps."""
        model, optimizer = self.model, self.model.optimizer
        guard.attach()
        scale_loss, apply, train_step = optimizer.scale_loss, optimizer.apply, model.train_step
        losses: list[tf.Tensor] = []  # of the step being traced or run eagerly

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
            with guard.keeping(state, self._batch_saver(data, losses)):
                return train_step(data)

        own = vars(model).get("train_step")

        def undo() -> None:
            guard.detach()
            for name in ("scale_loss", "apply"):
                vars(optimizer).pop(name, None)
            model.__dict__.pop("train_step")
            if own is not None:  # for example from `weigh_rows`
                model.train_step = own
            model.make_train_function(force=True)

        # Bypasses Keras' __setattr__, which tracks state.
        object.__setattr__(optimizer, "scale_loss", noted_loss)
        object.__setattr__(optimizer, "apply", noted_apply)
        model.train_step = guarded_train_step
        # XLA cannot assign a batch of dynamic shape to a variable.
        model.jit_compile = False
        model.make_train_function(force=True)
        self._undo = undo

    def _detach(self) -> None:
        if self._guard is not None:
            self._guard = None
            self._undo()

    def _batch_saver(self, data: Any, losses: list[tf.Tensor]) -> Callable[[], None]:
        """A function that saves the batch and loss of a skipped update, to find the cause."""
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        tensors = tf.nest.flatten(inputs)
        if not all(isinstance(tensor, tf.Tensor) for tensor in tensors):
            return lambda: None
        if self._batch is None:
            with tf.init_scope(), tf.device("CPU:0"):
                copies = [
                    tf.Variable(tf.zeros([], t.dtype), False, shape=tf.TensorShape(None))
                    for t in tensors
                ]
                self._loss = tf.Variable(0.0, trainable=False)
            self._batch = tf.nest.pack_sequence_as(inputs, copies)

        def keep() -> None:
            for loss in losses:
                self._loss.assign(tf.cast(loss, tf.float32))
            for variable, tensor in zip(tf.nest.flatten(self._batch), tensors, strict=True):
                variable.assign(tensor)

        return keep

    def _cause(self, guard: UpdateGuard) -> str:
        """The origin of the most recent skipped update. A collective call."""
        if self._batch is not None:
            inputs = tf.nest.map_structure(lambda variable: variable.read_value(), self._batch)
            origin = find_origin(self.model, inputs, self.communicator, self._loss)
            if origin is not None:
                return str(origin)
        return gradient_cause(guard)


def gradient_cause(guard: UpdateGuard) -> str:
    """The gradient that is not finite, for a step in which all outputs are finite."""
    suspects = [v for v, bad in zip(guard.watched, guard.suspects.numpy(), strict=True) if bad]
    # The backward pass reaches the last variable first.
    return (
        f"the gradient of {suspects[-1].path} is not finite"
        if suspects
        else "its loss is NaN or infinite"
    )
