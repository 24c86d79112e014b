"""Loads the library of kernels and initialises its operations."""

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
    """The loaded library.

    Attributes:
        operations: The module of operations from `tf.load_op_library`.
        functions: The other exports of the library, through ctypes.
        file: The library.
        instruction_set: The instruction set chosen for this processor, as compilers name it.
    """

    operations: Any
    functions: ctypes.CDLL
    file: Path
    instruction_set: str

    def sync_thread_count(self) -> None:
        """Uses the number of threads of TensorFlow, which may change until it starts."""
        self.functions.syncbn_use_threads(_intra_op_threads())


def load() -> Kernels:
    """Finds or builds the library and loads it.

    Raises:
        BuildError: It is not available or cannot run here; the message tells why.
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
        raise BuildError(f"TensorFlow {tf.__version__} did not register the operations of {file}")
    return Kernels(operations, functions, file, chosen.decode())


def _intra_op_threads() -> int:
    """TensorFlow's intra-op threads: set by the program, the environment, or the core count."""
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    named = os.environ.get(_THREADS_VARIABLE, "")
    if threads == 0 and named.isdigit():
        threads = int(named)
    return threads or len(os.sched_getaffinity(0))
