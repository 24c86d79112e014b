"""Reads batches in a thread of its own, a few ahead of the training step."""

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from launcher.train.data.dataset import Examples

Batch = tuple[np.ndarray, np.ndarray]

_AHEAD = 3


@contextmanager
def batches(examples: Examples, shares: Iterable[np.ndarray]) -> Iterator[Iterator[Batch]]:
    """The features and labels of each share, in order, read ahead.

    An error of the reader is raised to the consumer at the batch it concerns. Leaving the context
    stops the reader, wherever it is.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for share in shares:
                if not put(examples.read(share)):
                    return
        except Exception as error:  # whatever it is, it belongs to the consumer
            put(error)
        else:
            put(None)

    def taken() -> Iterator[Batch]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    reader = threading.Thread(target=read, name="batch-reader", daemon=True)
    reader.start()
    try:
        yield taken()
    finally:
        stop.set()
        reader.join()
