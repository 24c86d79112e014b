"""The buffer into which graphs write measurements, two numbers per slot.

A slot is a row: start and end of the last run of a collective, in seconds since the epoch, or a
value and its time.
"""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

from syncbn import dispatch, native
from syncbn.native.loading import Kernels

_VARIABLE_SLOTS = 2048


class TelemetryBuffer(ABC):
    """The slots of the graphs of this process.

    Attributes:
        slots: Maps kind and name to the row.
        bytes: Maps the row of a collective to its message size in bytes.
    """

    def __init__(self, capacity: int) -> None:
        self.slots: dict[tuple[str, str], int] = {}
        self.bytes: dict[int, int] = {}
        self._capacity = capacity
        self._seen = np.zeros([capacity, 2])

    @property
    def usable(self) -> bool:
        """Whether the graph being traced can be measured: XLA cannot compile a clock."""
        return not dispatch.inside_xla()

    def slot(self, kind: str, name: str) -> int | None:
        """The row of a collective, the same each time it is traced; None if all are used."""
        known = self.slots.setdefault((kind, name), len(self.slots))
        return known if known < self._capacity else None

    def drain(self) -> dict[int, tuple[float, float]]:
        """The rows written since the last call."""
        used = min(len(self.slots), self._capacity)
        rows = self._rows(used)
        changed = np.flatnonzero(rows[:, 1] != self._seen[:used, 1])
        self._seen[:used] = rows
        return {int(slot): (rows[slot, 0], rows[slot, 1]) for slot in changed}

    @abstractmethod
    def _rows(self, used: int) -> np.ndarray:
        """The first `used` rows, shape (used, 2), float64."""

    @abstractmethod
    def measure(
        self,
        slot: int,
        tensors: Sequence[tf.Tensor],
        collective: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
    ) -> list[tf.Tensor]:
        """Runs `collective(tensors)`, measured from its last input to its last result."""

    @abstractmethod
    def note_norm(self, slot: int, gradients: Sequence[Any]) -> None:
        """Records the global Euclidean norm of `gradients`."""


class NativeBuffer(TelemetryBuffer):
    """Uses C++ operations that forward their inputs and take about a microsecond each."""

    def __init__(self, kernels: Kernels) -> None:
        self._operations = kernels.operations
        export = kernels.functions.syncbn_telemetry_buffer
        export.argtypes, export.restype = [ctypes.c_void_p], ctypes.POINTER(ctypes.c_double)
        capacity = ctypes.c_int64()
        address = export(ctypes.byref(capacity))
        super().__init__(capacity.value)
        self._memory = np.ctypeslib.as_array(address, (capacity.value, 2))

    def _rows(self, used: int) -> np.ndarray:
        return self._memory[:used].copy()

    def measure(
        self,
        slot: int,
        tensors: Sequence[tf.Tensor],
        collective: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
    ) -> list[tf.Tensor]:
        results = collective(self._clock(slot, tensors, end=False))
        return self._clock(slot, results, end=True)

    def _clock(self, slot: int, tensors: Sequence[tf.Tensor], end: bool) -> list[tf.Tensor]:
        with tf.device("CPU:0"):
            passed = self._operations.syncbn_clock(tensors=list(tensors), slot=slot, end=end)
        for after, before in zip(passed, tensors, strict=True):
            after.set_shape(before.shape)
        return list(passed)

    def note_norm(self, slot: int, gradients: Sequence[Any]) -> None:
        values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
        with tf.device("CPU:0"):
            self._operations.syncbn_norm(
                tensors=[tf.convert_to_tensor(v) for v in values if v is not None], slot=slot
            )


class VariableBuffer(TelemetryBuffer):
    """Uses TensorFlow operations: for GPUs, and without a C++ compiler.

    On a GPU the end time is when the collective has been queued, not when it has run.
    """

    def __init__(self) -> None:
        super().__init__(_VARIABLE_SLOTS)
        with tf.init_scope(), tf.device("CPU:0"):
            self._table = tf.Variable(tf.zeros([_VARIABLE_SLOTS, 2], tf.float64), trainable=False)

    @property
    def usable(self) -> bool:
        # With op determinism TensorFlow rejects tf.timestamp.
        return super().usable and not is_op_determinism_enabled()

    def _rows(self, used: int) -> np.ndarray:
        return self._table.numpy()[:used]

    def measure(
        self,
        slot: int,
        tensors: Sequence[tf.Tensor],
        collective: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
    ) -> list[tf.Tensor]:
        with tf.control_dependencies(list(tensors)):
            start = tf.timestamp()
        with tf.control_dependencies([start]):
            results = collective([tf.identity(tensor) for tensor in tensors])
        with tf.control_dependencies(results):
            end = tf.timestamp()
        self._write(slot, start, end)
        return results

    def note_norm(self, slot: int, gradients: Sequence[Any]) -> None:
        norm = tf.cast(tf.linalg.global_norm(list(gradients)), tf.float64)
        with tf.control_dependencies([norm]):
            self._write(slot, norm, tf.timestamp())

    def _write(self, slot: int, first: tf.Tensor, second: tf.Tensor) -> None:
        with tf.device("CPU:0"):
            tf.raw_ops.ResourceScatterUpdate(
                resource=self._table.handle, indices=slot, updates=tf.stack([first, second])
            )


def make_buffer() -> TelemetryBuffer:
    """The fastest buffer for the devices of this process."""
    kernels = None if dispatch.native_operations() is None else native.kernels()
    return VariableBuffer() if kernels is None else NativeBuffer(kernels)
