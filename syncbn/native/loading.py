"""Opens the library of kernels and makes its operations ready to run."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from syncbn.native.compiler import BuildError
from syncbn.native.library import library

_THREADS_VARIABLE = "TF_NUM_INTRAOP_THREADS"


@dataclass(frozen=True)
class Kernels:
    """The library, loaded.

    Attributes:
        operations: The module of operations made by `tf.load_op_library`.
        functions: What else the library exports, by ctypes.
        file: The library.
        instruction_set: The instructions chosen for this processor, as compilers call them.
    """

    operations: Any
    functions: ctypes.CDLL
    file: Path
    instruction_set: str

    def follow_threads(self) -> None:
        """As many threads an operation as TensorFlow has, which may change until it starts."""
        self.functions.syncbn_use_threads(_intra_op_threads())


def load() -> Kernels:
    """Finds or builds the library and loads it.

    Raises:
        BuildError: It cannot be had, or cannot run here; the text says why.
    """
    file = library()
    try:
        operations = tf.load_op_library(str(file))
        functions = ctypes.CDLL(str(file))
    except (tf.errors.OpError, OSError) as error:
        raise BuildError(f"{file} cannot be loaded: {error}") from error
    functions.syncbn_start.restype = ctypes.c_char_p
    message = ctypes.create_string_buffer(256)
    wanted = os.environ.get("SYNCBN_MARCH", "").encode()
    chosen = functions.syncbn_start(wanted, message, len(message))
    if chosen is None:
        raise BuildError(message.value.decode(errors="replace"))
    if not hasattr(operations, "syncbn_normalize"):
        raise BuildError(f"TensorFlow {tf.__version__} has not taken the operations of {file}")
    return Kernels(operations, functions, file, chosen.decode())


def _intra_op_threads() -> int:
    """Of TensorFlow: what the program set, else the environment, else all cores of the process."""
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    named = os.environ.get(_THREADS_VARIABLE, "")
    if threads == 0 and named.isdigit():
        threads = int(named)
    return threads or len(os.sched_getaffinity(0))
