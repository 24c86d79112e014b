"""Base class of the callbacks in `callbacks` and `non_finite`."""

import keras

from syncbn.communicators import communicator as current_communicator
from syncbn.communicators.base import Communicator


class RanksCallback(keras.callbacks.Callback):
    """A callback that communicates with the other ranks.

    Args:
        communicator: None for `syncbn.communicator()`.
    """

    def __init__(self, communicator: Communicator | None) -> None:
        super().__init__()
        self._communicator = communicator

    @property
    def communicator(self) -> Communicator:
        """Resolved at each use: an elastic job may replace its communicator."""
        return self._communicator or current_communicator()
