"""Where the work is done: every decision that depends on the device or on what is installed."""

from typing import Any

import tensorflow as tf

from syncbn import native
from syncbn.communicators.base import Communicator


def native_operations(communicator: Communicator) -> Any | None:
    """The C++ operations when they are the best road for the layer, else None.

    They run on the CPU, and XLA cannot compile them.
    """
    if communicator.jit_compatible or tf.config.get_visible_devices("GPU"):
        return None
    return native.operations()
