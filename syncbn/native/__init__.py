"""The kernels in C++: built once for this TensorFlow and processor, then loaded.

`operations()` is all the rest of the package needs: the operations, or None where they cannot be
had. They compute what `moments.py` says, several times as fast.
"""

import logging
import os
from functools import cache
from typing import Any

import tensorflow as tf

from syncbn.native.library import BuildError, library

_log = logging.getLogger(__name__)


@cache
def operations() -> Any | None:
    """The module of operations made by `tf.load_op_library`, or None, saying why in the log.

    The first call in a fresh installation builds the library (some 20 s). `SYNCBN_NATIVE=0` in the
    environment does without it.
    """
    if os.environ.get("SYNCBN_NATIVE") == "0":
        return None
    try:
        return tf.load_op_library(str(library()))
    except (BuildError, tf.errors.NotFoundError, OSError) as error:
        _log.warning("statistics go by slower TensorFlow operations: %s", error)
        return None
