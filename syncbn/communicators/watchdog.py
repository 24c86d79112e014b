"""A time limit for TensorFlow collectives that a running peer does not call.

gRPC reports a dead peer immediately, and the heartbeats of TensorFlow's coordination service report
a stopped or disconnected one after about ten seconds. Neither detects a peer that is healthy but
never calls the collective. TensorFlow's own limit (`timeout_seconds` of the operations) starts two
threads per collective that sleep until the limit, even if the collective ends earlier (TensorFlow
2.21): a thousand threads after a few hundred steps. Here collectives are counted, and one thread
reads the counter.
"""

import atexit
import threading
import time
import weakref

import tensorflow as tf
from tensorflow.python.eager import context

from syncbn.communicators.captures import captured

_CHECKS_PER_LIMIT = 20
# The counter packs two numbers, so that one atomic read gets both: ended collectives in the high
# bits, pending ones in the low bits. Every event changes it.
_WAITING = 1 << 20


class Count:
    """Counts ended and pending collectives of one communicator.

    By operations in the graph, where collectives begin and end; the two additions to a variable
    take some microseconds.
    """

    def __init__(self) -> None:
        with tf.init_scope(), tf.device("CPU:0"):
            self._variable = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._seen, self._since = 0, time.monotonic()

    def begin(self) -> tf.Operation | None:
        """An operation to run before the collective."""
        return self._add(1)

    def end(self) -> tf.Operation | None:
        """An operation to run after the collective."""
        return self._add(_WAITING - 1)

    def waited(self) -> float:
        """Seconds since the last event while collectives are pending; 0 if none is."""
        value, now = int(self._variable.numpy()), time.monotonic()
        if value != self._seen or value % _WAITING == 0:
            self._seen, self._since = value, now
        return now - self._since

    def _add(self, value: int) -> tf.Operation | None:
        return tf.raw_ops.AssignAddVariableOp(
            resource=captured(self._variable.handle), value=tf.constant(value, tf.int64)
        )


class Watchdog:
    """Aborts the collectives of this process after they have waited for `seconds`.

    They raise DeadlineExceededError, and so does every later one: the process must be restarted, as
    after any failure of a peer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._counts: weakref.WeakSet[Count] = weakref.WeakSet()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="collectives", daemon=True)

    def watch(self, count: Count) -> None:
        """Monitors `count` as long as it is referenced."""
        self._counts.add(count)
        if self._thread.ident is None:
            self._thread.start()
            # A thread inside TensorFlow at interpreter shutdown would abort the process.
            atexit.register(self._stop)

    def _watch(self) -> None:
        while not self._stopping.wait(self._seconds / _CHECKS_PER_LIMIT):
            if max((count.waited() for count in list(self._counts)), default=0.0) > self._seconds:
                context.context().abort_collective_ops(
                    tf.errors.DEADLINE_EXCEEDED,
                    f"this rank has waited for {self._seconds:g} s in a collective that another "
                    "rank has not called: find that rank, and what it does instead, in the "
                    "logs of all ranks (docs/troubleshooting.md, 'hangs')",
                )
                return

    def _stop(self) -> None:
        self._stopping.set()
        self._thread.join()
