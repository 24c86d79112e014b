"""The C++ kernels, a faster implementation of `moments.py`.

`operations()` returns the operations, or None if they are not available; `status()` tells why.
"""

import logging
import os
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import tensorflow as tf

from syncbn.native.compiler import BuildError
from syncbn.native.loading import Kernels, load

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """The implementation that layers use in this process.

    Attributes:
        path: "native" for the kernels of this package, "tensorflow" for TensorFlow operations.
        library: The library file of the kernels.
        instruction_set: Their instruction set, as compilers name it, for example "x86-64-v3".
        tensorflow: The version of TensorFlow.
        reason: Why the path is not "native".
    """

    path: Literal["native", "tensorflow"]
    library: str | None
    instruction_set: str | None
    tensorflow: str
    reason: str | None

    @property
    def brief(self) -> str:
        """The implementation in a few words, with the reason if it is TensorFlow's."""
        if self.path == "native":
            return f"native kernels for {self.instruction_set}"
        return f"TensorFlow's operations ({self.reason})"

    def __str__(self) -> str:
        version = f"TensorFlow {self.tensorflow}"
        if self.path == "native":
            return f"native ({self.instruction_set}, {self.library}, {version})"
        return f"operations of {version}: {self.reason}"


def status() -> Status:
    """The implementation that layers of this process use, and why; loads the kernels if needed.

    Example:
        >>> syncbn.native.status().path
        'native'
    """
    kernels = None if _disabled() else _kernels()
    if not isinstance(kernels, Kernels):
        reason = kernels or "SYNCBN_NATIVE=0 is set"
        return Status("tensorflow", None, None, tf.__version__, reason)
    if tf.config.get_visible_devices("GPU"):
        return Status("tensorflow", None, None, tf.__version__, "the layers run on a GPU")
    return Status("native", str(kernels.file), kernels.instruction_set, tf.__version__, None)


def operations() -> Any | None:
    """The module of operations from `tf.load_op_library`, or None, with the reason in the log.

    The first call in a new installation builds the library (about a minute on two cores).
    `SYNCBN_NATIVE=0` in the environment disables it.
    """
    loaded = kernels()
    return None if loaded is None else loaded.operations


def kernels() -> Kernels | None:
    """The loaded library, or None if `operations` returns None."""
    loaded = None if _disabled() else _kernels()
    if not isinstance(loaded, Kernels):
        return None
    loaded.sync_thread_count()
    return loaded


def _disabled() -> bool:
    return os.environ.get("SYNCBN_NATIVE") == "0"


@cache
def _kernels() -> Kernels | str:
    """The loaded library, or the reason why there is none."""
    try:
        return load()
    except BuildError as error:
        _log.warning("statistics go by slower TensorFlow operations: %s", error)
        return str(error)
