"""How long the collectives of this process take, for whoever watches the job.

Costs nothing until `watch()` is called, which must happen before the graphs are traced. From then
on a collective costs about one microsecond more, and `collect()` hands over what has run since it
was last called; a training loop calls it once a step.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from syncbn.boards import Board, make_board
from syncbn.communicators.base import Communicator

Kind = Literal["sync_batch_norm", "gradients", "other"]

# Bounds what is held when somebody watches and never collects.
_MOST_SPANS = 100_000


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
_board: Board | None = None


def watch() -> None:
    """Starts to measure every collective that is traced or run from now on. May be called twice."""
    global _watching, _board
    _watching = True
    _board = _board or make_board()


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
    if tf.executing_eagerly():
        start = time.time()
        results = collective(tensors)
        size = sum(tensor.dtype.size * int(tf.size(tensor)) for tensor in tensors)
        _finished.append(Span(kind, name, start, max(0.0, time.time() - start), size))
        return results
    place = _board.place(kind, name) if _board is not None and _board.usable else None
    if _board is None or place is None:
        return collective(tensors)
    _board.bytes[place] = sum(t.dtype.size * (t.shape.num_elements() or 0) for t in tensors)
    return _board.measure(place, tensors, collective)


def note_norm(name: str, gradients: Sequence[Any]) -> None:
    """Notes the Euclidean norm of all `gradients` together under `name`; None counts as zero."""
    if not _watching or _board is None or tf.executing_eagerly() or not _board.usable:
        return
    place = _board.place("number", name)
    if place is not None:
        _board.note_norm(place, gradients)
