"""Where the work is done: every decision that depends on the device or on what is installed."""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from syncbn import native


def native_operations() -> Any | None:
    """The C++ operations when they are the best path for the layer, else None.

    They run on the CPU, and XLA cannot compile them.
    """
    if inside_xla() or tf.config.get_visible_devices("GPU"):
        return None
    return native.operations()


def inside_xla() -> bool:
    """Whether the graph being traced is one that XLA must compile."""
    if tf.executing_eagerly():
        return False
    from tensorflow.python.ops import control_flow_util

    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


@dataclass(frozen=True)
class BytesMoved:
    """How often a layer goes over its tensor of inputs: what a step must at least read and write.

    Forward: the sums read x, normalizing reads x and writes y. Backward: the sums read dy and x,
    the input gradient reads dy and x and writes dx. Nothing else has the size of the inputs.

    On the CPU the native operations make exactly these passes. A tensor that fits in the cache
    costs less, since the second pass of each direction begins where the first one ended. On a GPU
    the TensorFlow operations of `moments.py` are fused by XLA only where the communicator allows it
    (`jit_compatible`); otherwise each elementwise operation is a pass of its own: of float32 inputs
    some 12 forward (a copy for the pivot, the centred values and their squares, both widened to
    float64 for the sums, then four operations to normalize) and some 20 backward.

    Attributes:
        forward: Passes forward, reads and writes counted alike.
        backward: Passes backward.
    """

    forward: int
    backward: int

    @property
    def passes(self) -> int:
        return self.forward + self.backward


BYTES_MOVED = BytesMoved(forward=3, backward=5)
