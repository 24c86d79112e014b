"""The kernels in C++, loaded where they can be; they compute what `moments.py` says, much faster.

`operations()` is all that the layer needs: the operations, or None where they cannot be had.
`status()` says which it is, and why.
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
    """How layers compute their statistics in this process.

    Attributes:
        path: By the kernels of this package ("native"), or by TensorFlow's own operations.
        library: The file that holds the kernels.
        instruction_set: The instructions they use, as compilers call them: "x86-64-v3".
        tensorflow: Its version.
        reason: Why the path is not "native".
    """

    path: Literal["native", "tensorflow"]
    library: str | None
    instruction_set: str | None
    tensorflow: str
    reason: str | None

    @property
    def brief(self) -> str:
        """A few words: what computes, or why TensorFlow does."""
        if self.path == "native":
            return f"native kernels for {self.instruction_set}"
        return f"TensorFlow's operations ({self.reason})"

    def __str__(self) -> str:
        version = f"TensorFlow {self.tensorflow}"
        if self.path == "native":
            return f"native ({self.instruction_set}, {self.library}, {version})"
        return f"operations of {version}: {self.reason}"


def status() -> Status:
    """Which path the layers of this process take, and why; loads the kernels if need be.

    Example:
        >>> syncbn.native.status().path
        'native'
    """
    kernels = None if _off() else _kernels()
    if not isinstance(kernels, Kernels):
        reason = kernels or "SYNCBN_NATIVE=0 is set"
        return Status("tensorflow", None, None, tf.__version__, reason)
    if tf.config.get_visible_devices("GPU"):
        return Status("tensorflow", None, None, tf.__version__, "the layers run on a GPU")
    return Status("native", str(kernels.file), kernels.instruction_set, tf.__version__, None)


def operations() -> Any | None:
    """The module of operations made by `tf.load_op_library`, or None, saying why in the log.

    The first call in a fresh installation builds the library (some 10 s). `SYNCBN_NATIVE=0` in the
    environment does without it.
    """
    loaded = kernels()
    return None if loaded is None else loaded.operations


def kernels() -> Kernels | None:
    """The loaded library, or None where `operations` is None."""
    loaded = None if _off() else _kernels()
    if not isinstance(loaded, Kernels):
        return None
    loaded.follow_threads()
    return loaded


def _off() -> bool:
    return os.environ.get("SYNCBN_NATIVE") == "0"


@cache
def _kernels() -> Kernels | str:
    """The loaded library, or why there is none."""
    try:
        return load()
    except BuildError as error:
        _log.warning("statistics go by slower TensorFlow operations: %s", error)
        return str(error)
