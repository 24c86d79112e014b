"""The action of `--on-nan` when a loss, a gradient or a weight becomes NaN or infinite.

All ranks detect it at the same step, because losses are summed over the ranks and updates are
checked on the averaged gradients (`syncbn.update_guard`). They stop together or continue together.
"""

import math
from typing import Any

import keras
import numpy as np

from launcher.errors import LauncherError
from launcher.train.coordination import name_ranks, ranks_where
from launcher.train.observers.base import warn
from launcher.train.steps import Steps
from launcher.train.train_state import TrainState
from syncbn.communicators import Communicator
from syncbn.non_finite import MOST_SKIPS, gradient_cause
from syncbn.origins import find_origin, first_non_finite
from syncbn.update_guard import all_finite


class DivergedError(LauncherError):
    """Training has become NaN or infinite, on all ranks alike.

    Attributes:
        rank: The rank that reports it: the first where it was seen.
    """

    def __init__(self, text: str, rank: int = 0) -> None:
        super().__init__(text)
        self.rank = rank


class NonFiniteCheck:
    """Checks each step, each evaluation, and each state before it is saved.

    Args:
        action: `stop`, `skip` or `ignore`.
        model: The model.
        variables: All variables in a checkpoint. One that is not finite at the start (such as a
            mask of minus infinity) may remain so.
        steps: The compiled training steps.
        communicator: The ranks.
    """

    def __init__(
        self,
        action: str,
        model: keras.Model,
        variables: list[Any],
        steps: Steps,
        communicator: Communicator,
    ) -> None:
        self._action = action
        self._model, self._steps, self._communicator = model, steps, communicator
        self._variables = [v for v in variables if first_non_finite([v]) is None]

    def accepts(self, state: TrainState, loss: float, skipped: bool, features: np.ndarray) -> bool:
        """Whether the step just done counts. A collective call if it does not.

        Args:
            state: The loop state; its counts of skipped steps are updated.
            loss: The loss of the step, over all ranks.
            skipped: Whether the update was skipped.
            features: The batch of this rank, to find the cause.

        Raises:
            DivergedError: The step does not count, and the run must stop.
        """
        if self._action == "ignore":
            return True
        if (reason := self._steps.hopeless) is not None:
            raise DivergedError(f"step {state.step} is not finite: {reason}")
        if math.isfinite(loss) and not skipped:
            state.skipped_in_a_row = 0
            return True
        cause, rank = self._cause(loss, features)
        if self._action == "stop":
            done = "; that update was not made" if skipped else ""
            raise DivergedError(f"step {state.step} is not finite: {cause}{done}", rank)
        state.skipped += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row >= MOST_SKIPS:
            done = f"; {MOST_SKIPS} updates in a row were not made"
            raise DivergedError(f"step {state.step} is not finite: {cause}{done}", rank)
        if self._communicator.rank == 0:
            warn(f"the update of step {state.step} is skipped: {cause}")
        return False

    def check_state(self, step: int) -> None:
        """Checks the variables before they are saved. A collective call.

        Raises:
            DivergedError: A variable is not finite; the message names it.
        """
        if self._action == "ignore":
            return
        broken = first_non_finite(self._variables)
        where = ranks_where(broken is not None, self._communicator)
        if where:
            name = "a variable" if broken is None else f"the variable {broken.path}"
            raise DivergedError(
                f"the state after step {step} is not finite and not saved: {name} on "
                f"{name_ranks(where)}",
                where[0],
            )

    def check_evaluation(self, step: int, loss: float, damaged: bool) -> None:
        """Checks the held-out loss. A collective call if it is not finite.

        Args:
            step: The current step.
            loss: The held-out loss, over all ranks.
            damaged: Whether this rank has read NaN in the held-out data.

        Raises:
            DivergedError: The loss is not finite, and the run must stop.
        """
        if self._action == "ignore" or math.isfinite(loss):
            return
        where = ranks_where(damaged, self._communicator)
        reason = f"a batch of {name_ranks(where)} holds NaN" if where else "its data is finite"
        text = f"the held-out loss after step {step} is not finite ({loss}): {reason}"
        if self._action == "stop":
            raise DivergedError(text, where[0] if where else 0)
        if self._communicator.rank == 0:
            warn(text)

    def _cause(self, loss: float, features: np.ndarray) -> tuple[str, int]:
        """What first became non-finite, and the first rank where it did. A collective call."""
        guard = self._steps.guard
        not_finite = "its loss is NaN or infinite"
        if guard is None:  # several replicas, whose update was made: the weights give no cause
            damaged = ranks_where(not bool(all_finite([features])), self._communicator)
            return ("the batch holds NaN or infinite values" if damaged else not_finite), 0
        if not len(features):  # some TensorFlow convolutions fail on zero rows
            features = np.zeros((1, *features.shape[1:]), np.float32)
        origin = find_origin(self._model, features, self._communicator)
        if origin is not None:
            return str(origin), origin.ranks[0]
        return (not_finite if not math.isfinite(loss) else gradient_cause(guard)), 0
