"""Prefetches batches in a background thread."""

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from launcher.train.data.dataset import Examples

Batch = tuple[np.ndarray, np.ndarray]

# Batches.
_PREFETCH = 3


@contextmanager
def batches(examples: Examples, shares: Iterable[np.ndarray]) -> Iterator[Iterator[Batch]]:
    """Yields an iterator over the features and labels of each share, in order, prefetched.

    An error of the reader is raised to the consumer at the batch that failed. Leaving the context
    stops the reader.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_PREFETCH)
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
        except Exception as error:  # raised to the consumer
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
