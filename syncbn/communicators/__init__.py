"""Communicators: one boundary, four engines, and which of them is current."""

from syncbn.communicators.base import Communicator
from syncbn.communicators.context import communicator, init, resolve, shutdown

__all__ = ["Communicator", "communicator", "init", "resolve", "shutdown"]
