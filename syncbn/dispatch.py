"""Decisions that depend on the device or on what is installed."""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from syncbn import native


def native_operations() -> Any | None:
    """The C++ operations if the layer should use them, otherwise None.

    They run on the CPU, and XLA cannot compile them.
    """
    if inside_xla() or tf.config.get_visible_devices("GPU"):
        return None
    return native.operations()


def inside_xla() -> bool:
    """Whether the graph being traced will be compiled by XLA."""
    if tf.executing_eagerly():
        return False
    from tensorflow.python.ops import control_flow_util

    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


@dataclass(frozen=True)
class BytesMoved:
    """The number of passes over the input tensor that one step of a layer makes.

    Forward: the sums read x, normalizing reads x and writes y. Backward: the sums read dy and x,
    the input gradient reads dy and x and writes dx. Nothing else has the size of the inputs. A
    residual is read once forward; before a rectifier it is read once backward, and its gradient is
    written once, then read instead of dy.

    On the CPU the native operations make exactly these passes. A tensor that fits in the cache
    costs less, since the second pass of each direction begins where the first one ended. On a GPU
    XLA fuses the TensorFlow operations of `moments.py` only if the communicator allows it
    (`jit_compatible`); otherwise each elementwise operation is a separate pass: for float32 inputs
    about 12 forward (a copy for the pivot, the centred values and their squares, both widened to
    float64 for the sums, then four operations to normalize) and about 20 backward.

    Attributes:
        forward: Forward passes; reads and writes count equally.
        backward: Backward passes.
    """

    forward: int
    backward: int

    @property
    def passes(self) -> int:
        return self.forward + self.backward


BYTES_MOVED = BytesMoved(forward=3, backward=5)
