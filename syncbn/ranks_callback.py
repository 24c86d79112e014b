"""What the callbacks of `callbacks` and `non_finite` have in common."""

import keras

from syncbn.communicators import communicator as current_communicator
from syncbn.communicators.base import Communicator


class RanksCallback(keras.callbacks.Callback):
    """A callback that meets the other ranks.

    Args:
        communicator: None for `syncbn.communicator()`.
    """

    def __init__(self, communicator: Communicator | None) -> None:
        super().__init__()
        self._given = communicator

    @property
    def ranks(self) -> Communicator:
        """Read at each use: an elastic job may get another one."""
        return self._given or current_communicator()
