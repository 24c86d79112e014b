"""Elastic jobs under `horovodrun --min-np`: ranks may die and join, training goes on.

Horovod's own Keras state does not know Keras 3; this one keeps the variables and the position, and
passes on JSON instead of pickled objects. Imported in elastic jobs only: it needs Horovod.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow as tf
from horovod.common.elastic import State, run_fn
from horovod.common.exceptions import HorovodInternalError

from launcher.train.coordination import broadcast_json
from launcher.train.loop import Trainer
from launcher.train.train_state import Outcome, Position
from syncbn.communicators import Communicator
from syncbn.communicators.horovod import import_horovod

Commit = Callable[[bool], None]
MakeTrainer = Callable[[Position, Commit], Trainer]


class KerasState(State):
    """The last committed state of the run, in host memory of every rank.

    Args:
        variables: All that training changes.
        position: Where the run stands; replaced when another rank tells.
        communicator: Reads rank and size at run time.
    """

    def __init__(
        self, variables: list[Any], position: Position, communicator: Communicator
    ) -> None:
        super().__init__(
            lambda value: broadcast_json(value, communicator), lambda: communicator.rank
        )
        self.position = position
        self._variables = variables
        self._bcast = lambda value: broadcast_json(value, communicator)
        self.save()

    def save(self) -> None:
        self._values = [np.array(variable) for variable in self._variables]
        self._position = asdict(self.position)

    def restore(self) -> None:
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)
        self.position = Position(**self._position)

    def sync(self) -> None:
        """The position of rank 0; its variables follow when the loop begins."""
        self.position = Position(**self._bcast(asdict(self.position)))
        self.save()


def run_elastically(make_trainer: MakeTrainer, state: KerasState, commit_steps: int) -> Outcome:
    """Trains to the end over whatever ranks there are.

    Args:
        make_trainer: Makes a trainer for the ranks of the moment from a position and a function to
            call after each step and epoch. Without collectives: a new rank must meet the others in
            `sync`.
        state: What is kept between.
        commit_steps: Steps between two commits, and so the most that a death costs.
    """
    hvd = import_horovod()

    def train(state: KerasState) -> Outcome:
        def commit(epoch_ended: bool) -> None:
            if epoch_ended or state.position.step % commit_steps == 0:
                state.commit()

        try:
            return make_trainer(state.position, commit).run()
        except tf.errors.OpError as error:
            # How TensorFlow passes on that a collective failed because a rank is gone.
            if "orovod" in str(error):
                raise HorovodInternalError(error) from error
            raise

    def reset() -> None:
        hvd.shutdown()
        hvd.init()

    return run_fn(train, reset)(state)
