"""Elastic jobs under `horovodrun --min-np`: training continues when ranks fail or join.

Horovod's own Keras state does not support Keras 3. This one keeps the variables and the loop state,
and sends JSON instead of pickled objects. It needs Horovod, so only elastic jobs import it.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow as tf
from horovod.common.elastic import State, run_fn
from horovod.common.exceptions import HorovodInternalError

from launcher.train.coordination import broadcast_json
from launcher.train.train_state import Outcome, TrainState
from syncbn.communicators import Communicator
from syncbn.communicators.horovod import import_horovod

# Called after each step with False, and after each epoch with True.
Commit = Callable[[bool], None]


class KerasState(State):
    """The last committed state of the run, in the host memory of every rank.

    Args:
        variables: All variables that training changes.
        train_state: The loop state; `sync` replaces it by that of rank 0.
        communicator: The ranks; rank and size are read at run time.
    """

    def __init__(
        self, variables: list[Any], train_state: TrainState, communicator: Communicator
    ) -> None:
        super().__init__(
            lambda value: broadcast_json(value, communicator), lambda: communicator.rank
        )
        self.train_state = train_state
        self._variables = variables
        self._communicator = communicator
        self.save()

    def save(self) -> None:
        """Copies the current state. Called by Horovod, as are the next two."""
        self._values = [np.array(variable) for variable in self._variables]
        self._saved = asdict(self.train_state)

    def restore(self) -> None:
        """Returns to the last copy."""
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)
        self.train_state = TrainState(**self._saved)

    def sync(self) -> None:
        """Takes the loop state of rank 0; its variables follow when training starts."""
        self.train_state = TrainState(
            **broadcast_json(asdict(self.train_state), self._communicator)
        )
        self.save()


def run_elastically(
    train: Callable[[TrainState, Commit], Outcome], state: KerasState, commit_steps: int
) -> Outcome:
    """Trains to the end, starting again from the last commit whenever the set of ranks changes.

    Args:
        train: Trains on the current ranks from a loop state. Calls no collective before it
            broadcasts the variables, because a new rank first communicates in `sync`.
        state: The state to keep across changes.
        commit_steps: Steps between two commits, the most that the loss of a rank undoes.
    """
    hvd = import_horovod()

    def attempt(state: KerasState) -> Outcome:
        def commit(epoch_ended: bool) -> None:
            if epoch_ended or state.train_state.step % commit_steps == 0:
                state.commit()

        try:
            return train(state.train_state, commit)
        except tf.errors.OpError as error:
            # TensorFlow wraps Horovod's error about a lost rank.
            if "orovod" in str(error):
                raise HorovodInternalError(error) from error
            raise

    def reset() -> None:
        hvd.shutdown()
        hvd.init()

    return run_fn(attempt, reset)(state)
