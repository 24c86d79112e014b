"""Communicators: one interface, four backends, and the current communicator."""

from syncbn.communicators.base import Communicator
from syncbn.communicators.context import communicator, init, resolve, shutdown

__all__ = ["Communicator", "communicator", "init", "resolve", "shutdown"]
