"""What a run does when a loss, a gradient or a weight becomes NaN or infinite: `--on-nan`.

All ranks see it at the same step: losses are summed over them, and an update is judged by the
averaged gradients (`syncbn.update_guard`), so that they leave together, or go on together.
"""

import math
from typing import Any

import keras
import numpy as np

from launcher.errors import LauncherError
from launcher.train.config import TrainConfig
from launcher.train.coordination import ranks_where
from launcher.train.observers.base import warn
from launcher.train.steps import Steps
from launcher.train.train_state import Position
from syncbn.communicators import Communicator
from syncbn.non_finite import MOST_SKIPS, gradient_cause
from syncbn.origins import find_origin, first_non_finite
from syncbn.update_guard import all_finite


class DivergedError(LauncherError):
    """Training has become NaN or infinite, on all ranks alike.

    Attributes:
        rank: Where it was seen first, which says so for all.
    """

    def __init__(self, text: str, rank: int = 0) -> None:
        super().__init__(text)
        self.rank = rank


class NonFiniteWatch:
    """Looks at each step, each evaluation and each state that is to be saved.

    Args:
        config: Says what to do.
        model: The model.
        variables: All that is saved. What is not finite at the start (a mask of minus infinity)
            may remain so.
        steps: What computes the steps.
        communicator: Agree on what they have found.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: keras.Model,
        variables: list[Any],
        steps: Steps,
        communicator: Communicator,
    ) -> None:
        self._action = config.on_nan
        self._model, self._steps, self._communicator = model, steps, communicator
        self._variables = [v for v in variables if first_non_finite([v]) is None]

    def is_sound(
        self, position: Position, loss: float, left_out: bool, features: np.ndarray
    ) -> bool:
        """Whether the step just done counts. A collective call where it does not.

        Raises:
            DivergedError: It does not, and the run is to stop.
        """
        if self._action == "ignore":
            return True
        if (reason := self._steps.hopeless) is not None:
            raise DivergedError(f"step {position.step} is not finite: {reason}")
        if math.isfinite(loss) and not left_out:
            position.skipped_in_a_row = 0
            return True
        cause, rank = self._cause(loss, features)
        if self._action == "stop":
            done = "; that update was not made" if left_out else ""
            raise DivergedError(f"step {position.step} is not finite: {cause}{done}", rank)
        position.skipped += 1
        position.skipped_in_a_row += 1
        if position.skipped_in_a_row >= MOST_SKIPS:
            done = f"; {MOST_SKIPS} updates in a row were not made"
            raise DivergedError(f"step {position.step} is not finite: {cause}{done}", rank)
        if self._communicator.rank == 0:
            warn(f"the update of step {position.step} is left out: {cause}")
        return False

    def check_state(self, step: int) -> None:
        """Refuses a state that is not finite, before it is saved. A collective call.

        Raises:
            DivergedError: Names the variable.
        """
        if self._action == "ignore":
            return
        broken = first_non_finite(self._variables)
        where = ranks_where(broken is not None, self._communicator)
        if where:
            name = "a variable" if broken is None else f"the variable {broken.path}"
            many = f"rank{'s' * (len(where) > 1)} {', '.join(map(str, where))}"
            raise DivergedError(
                f"the state after step {step} is not finite, and not saved: {name} on {many}",
                where[0],
            )

    def check_evaluation(self, step: int, loss: float, damaged: bool) -> None:
        """Looks at the held-out loss; `damaged`: this rank has seen NaN in the data.

        Raises:
            DivergedError: The loss is not finite, and the run is to stop.
        """
        if self._action == "ignore" or math.isfinite(loss):
            return
        where = ranks_where(damaged, self._communicator)
        many = f"rank{'s' * (len(where) > 1)} {', '.join(map(str, where))}"
        reason = f"a held-out batch of {many} holds NaN" if where else "the weights are"
        text = f"the held-out loss after step {step} is not finite ({loss}): {reason}"
        if self._action == "stop":
            raise DivergedError(text, where[0] if where else 0)
        if self._communicator.rank == 0:
            warn(text)

    def _cause(self, loss: float, features: np.ndarray) -> tuple[str, int]:
        """What was not finite first, and its first rank."""
        guard = self._steps.guard
        if guard is None:  # several replicas, whose update was made: the weights say no more
            damaged = ranks_where(not bool(all_finite([features])), self._communicator)
            return (
                "the batch holds NaN or infinite values"
                if damaged
                else "its loss is NaN or infinite"
            ), 0
        if not len(features):  # of no rows some convolutions of TensorFlow fail
            features = np.zeros((1, *features.shape[1:]), np.float32)
        origin = find_origin(self._model, features, self._communicator)
        if origin is not None:
            return str(origin), origin.ranks[0]
        return (
            "its loss is NaN or infinite" if not math.isfinite(loss) else gradient_cause(guard)
        ), 0
