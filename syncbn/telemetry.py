"""How long the collectives of this process take, for whoever watches the job.

Costs nothing until `watch()` is called, which must happen before the graphs are traced. From then
on a collective costs about one microsecond more, and `collect()` hands over what has run since it
was last called; a training loop calls it once a step.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

from syncbn.communicators.base import Communicator

Kind = Literal["sync_batch_norm", "gradients", "other"]

# Bounds what is held when somebody watches and never collects.
_MOST_SPANS = 100_000
_MOST_COLLECTIVES = 2048


class Span(NamedTuple):
    """One collective on this rank, its wait for slower ranks included.

    `start` is in seconds since the epoch; `bytes` is the size of this rank's message.
    """

    kind: Kind
    name: str
    start: float
    seconds: float
    bytes: int


_watching = False
_finished: deque[Span] = deque(maxlen=_MOST_SPANS)
_board: "_Board | None" = None


class _Board:
    """Two numbers for each place in a graph, in one variable, so that one read fetches all.

    A place is a row: start and end of a collective's last run, or a value and its time.
    """

    def __init__(self) -> None:
        with tf.init_scope(), tf.device("CPU:0"):
            self._rows = tf.Variable(tf.zeros([_MOST_COLLECTIVES, 2], tf.float64), trainable=False)
        self._seen = np.zeros([_MOST_COLLECTIVES, 2])
        self.places: dict[tuple[str, str], int] = {}
        self.bytes: dict[int, int] = {}

    def place(self, kind: str, name: str) -> int | None:
        """The row of a collective, the same each time it is traced; None when all are taken."""
        known = self.places.setdefault((kind, name), len(self.places))
        return known if known < _MOST_COLLECTIVES else None

    def write(self, place: int, first: tf.Tensor, second: tf.Tensor) -> None:
        with tf.device("CPU:0"):
            tf.raw_ops.ResourceScatterUpdate(
                resource=self._rows.handle, indices=place, updates=tf.stack([first, second])
            )

    def news(self) -> dict[int, tuple[float, float]]:
        """The rows written since the last call."""
        rows = self._rows.numpy()
        changed = np.flatnonzero(rows[:, 1] != self._seen[:, 1])
        self._seen = rows
        return {int(place): (rows[place, 0], rows[place, 1]) for place in changed}


def watch() -> None:
    """Starts to measure every collective that is traced or run from now on. May be called twice."""
    global _watching, _board
    _watching = True
    _board = _board or _Board()


def collect() -> tuple[list[Span], dict[str, float]]:
    """The collectives that ended, and the numbers noted, since the last call.

    Of a collective that one graph runs several times in between only the last run is seen.
    """
    spans = [_finished.popleft() for _ in range(len(_finished))]
    numbers: dict[str, float] = {}
    if _board is not None and _board.places:
        news = _board.news()
        for (kind, name), place in _board.places.items():
            if place not in news:
                continue
            first, second = news[place]
            if kind == "number":
                numbers[name] = first
            else:
                size = _board.bytes[place]
                spans.append(Span(kind, name, first, max(0.0, second - first), size))  # type: ignore[arg-type]
    return spans, numbers


def all_reduce(communicator: Communicator, tensor: tf.Tensor, name: str, kind: Kind) -> tf.Tensor:
    """`communicator.all_reduce(tensor, name)`, measured when somebody watches."""
    if not _watching or communicator.size == 1:
        return communicator.all_reduce(tensor, name)
    return _timed(kind, name, [tensor], lambda t: [communicator.all_reduce(t[0], name)])[0]


def all_reduce_many(
    communicator: Communicator, tensors: Sequence[tf.Tensor], name: str, kind: Kind
) -> list[tf.Tensor]:
    """`communicator.all_reduce_many(tensors, name)`, measured when somebody watches."""
    if not _watching or communicator.size == 1:
        return communicator.all_reduce_many(tensors, name)
    return _timed(kind, name, tensors, lambda t: communicator.all_reduce_many(t, name))


def _timed(
    kind: Kind,
    name: str,
    tensors: Sequence[tf.Tensor],
    collective: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
) -> list[tf.Tensor]:
    """From the moment all `tensors` are there to the last result.

    On a GPU that is the host's view: until the collective has been queued, not until it has run.
    """
    if tf.executing_eagerly():
        start = time.time()
        results = collective(tensors)
        size = sum(tensor.dtype.size * int(tf.size(tensor)) for tensor in tensors)
        _finished.append(Span(kind, name, start, max(0.0, time.time() - start), size))
        return results
    place = _board.place(kind, name) if _board is not None else None
    if _board is None or place is None or is_op_determinism_enabled():
        # TensorFlow counts the clock among what is not deterministic, and refuses it.
        return collective(tensors)
    _board.bytes[place] = sum(t.dtype.size * (t.shape.num_elements() or 0) for t in tensors)
    with tf.control_dependencies(list(tensors)):
        start = tf.timestamp()
    with tf.control_dependencies([start]):
        results = collective([tf.identity(tensor) for tensor in tensors])
    with tf.control_dependencies(results):
        end = tf.timestamp()
    _board.write(place, start, end)
    return results


def note_norm(name: str, gradients: Sequence[Any]) -> None:
    """Notes the Euclidean norm of all `gradients` together under `name`; None counts as zero."""
    if not _watching or _board is None or tf.executing_eagerly() or is_op_determinism_enabled():
        return
    place = _board.place("number", name)
    if place is not None:
        norm = tf.cast(tf.linalg.global_norm(list(gradients)), tf.float64)
        with tf.control_dependencies([norm]):
            _board.write(place, norm, tf.timestamp())
