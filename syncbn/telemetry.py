"""Measures the durations of collectives in this process, and norms of gradients.

Disabled, without cost, until `watch()` is called, which must happen before graphs are traced. Then
each collective takes about one microsecond longer, and `collect()`, called by a training loop once
a step, returns the measurements since its last call.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from syncbn.communicators.base import Communicator
from syncbn.telemetry_buffer import TelemetryBuffer, make_buffer

Kind = Literal["sync_batch_norm", "gradients", "other"]

# Limits the memory used if `collect` is never called.
_MAX_SPANS = 100_000


class Span(NamedTuple):
    """One collective on this rank, including the wait for slower ranks.

    `start` is in seconds since the epoch; `bytes` is the size of this rank's message.
    """

    kind: Kind
    name: str
    start: float
    seconds: float
    bytes: int


_watching = False
_finished: deque[Span] = deque(maxlen=_MAX_SPANS)
_buffer: TelemetryBuffer | None = None


def watch() -> None:
    """Measures every collective that is traced or run from now on. May be called repeatedly."""
    global _watching, _buffer
    _watching = True
    _buffer = _buffer or make_buffer()


def collect() -> tuple[list[Span], dict[str, float]]:
    """Collectives that ended, and numbers noted, since the last call.

    If a graph has run a collective several times in between, only the last run is returned.
    """
    spans = [_finished.popleft() for _ in range(len(_finished))]
    numbers: dict[str, float] = {}
    if _buffer is not None and _buffer.slots:
        written = _buffer.drain()
        for (kind, name), slot in _buffer.slots.items():
            if slot not in written:
                continue
            first, second = written[slot]
            if kind == "number":
                numbers[name] = first
            else:
                size = _buffer.bytes[slot]
                spans.append(Span(kind, name, first, max(0.0, second - first), size))  # type: ignore[arg-type]
    return spans, numbers


def all_reduce(communicator: Communicator, tensor: tf.Tensor, name: str, kind: Kind) -> tf.Tensor:
    """`communicator.all_reduce(tensor, name)`, measured after `watch()`."""
    if not _watching or communicator.size == 1:
        return communicator.all_reduce(tensor, name)
    return _timed(kind, name, [tensor], lambda t: [communicator.all_reduce(t[0], name)])[0]


def all_reduce_many(
    communicator: Communicator, tensors: Sequence[tf.Tensor], name: str, kind: Kind
) -> list[tf.Tensor]:
    """`communicator.all_reduce_many(tensors, name)`, measured after `watch()`."""
    if not _watching or communicator.size == 1:
        return communicator.all_reduce_many(tensors, name)
    return _timed(kind, name, tensors, lambda t: communicator.all_reduce_many(t, name))


def _timed(
    kind: Kind,
    name: str,
    tensors: Sequence[tf.Tensor],
    collective: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
) -> list[tf.Tensor]:
    if tf.executing_eagerly():
        start = time.time()
        results = collective(tensors)
        size = sum(tensor.dtype.size * int(tf.size(tensor)) for tensor in tensors)
        _finished.append(Span(kind, name, start, max(0.0, time.time() - start), size))
        return results
    slot = _buffer.slot(kind, name) if _buffer is not None and _buffer.usable else None
    if _buffer is None or slot is None:
        return collective(tensors)
    _buffer.bytes[slot] = sum(t.dtype.size * (t.shape.num_elements() or 0) for t in tensors)
    return _buffer.measure(slot, tensors, collective)


def note_norm(name: str, gradients: Sequence[Any]) -> None:
    """Records the global Euclidean norm of `gradients` under `name`; None counts as zero."""
    if not _watching or _buffer is None or tf.executing_eagerly() or not _buffer.usable:
        return
    slot = _buffer.slot("number", name)
    if slot is not None:
        _buffer.note_norm(slot, gradients)
