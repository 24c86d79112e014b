"""A limit on how long a collective of TensorFlow waits for ranks that live but do not come.

A peer that dies is reported by gRPC at once, one that is stopped or cut off by the heartbeats of
TensorFlow's coordination service after some ten seconds. What is left is a peer that answers and
never calls the collective. TensorFlow's own limit (`timeout_seconds` of the operations) starts two
threads for every collective that sleep until it has passed, whether the collective is over or not
(TensorFlow 2.21): a thousand threads after a few hundred steps. Here the collectives are counted,
and one thread looks at the count.
"""

import atexit
import threading
import time
import weakref

import tensorflow as tf
from tensorflow.python.eager import context

from syncbn.communicators.captures import captured

_LOOKS_WITHIN_LIMIT = 20
# The count holds two numbers: collectives that have ended, above, and those that wait, below. It
# differs after each event, and is read in one piece.
_WAITING = 1 << 20


class Count:
    """How many collectives of one communicator have ended, and how many wait.

    Counted by operations in the graph, since that is where collectives begin and end; two additions
    to a variable take some microseconds.
    """

    def __init__(self) -> None:
        with tf.init_scope(), tf.device("CPU:0"):
            self._variable = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._seen, self._since = 0, time.monotonic()

    def begin(self) -> tf.Operation | None:
        """An operation that must come before the collective."""
        return self._add(1)

    def end(self) -> tf.Operation | None:
        """An operation that must come after it."""
        return self._add(_WAITING - 1)

    def waited(self) -> float:
        """For how many seconds collectives have waited and none has begun or ended."""
        value, now = int(self._variable.numpy()), time.monotonic()
        if value != self._seen or value % _WAITING == 0:
            self._seen, self._since = value, now
        return now - self._since

    def _add(self, value: int) -> tf.Operation | None:
        return tf.raw_ops.AssignAddVariableOp(
            resource=captured(self._variable.handle), value=tf.constant(value, tf.int64)
        )


class Watchdog:
    """Ends the collectives of this process once they have waited for `seconds`.

    They raise DeadlineExceededError, and so does every later one: the process has to be started
    again, as after any failure of a peer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._counts: weakref.WeakSet[Count] = weakref.WeakSet()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="collectives", daemon=True)

    def watch(self, count: Count) -> None:
        """Looks at `count` from now on, as long as it is referenced."""
        self._counts.add(count)
        if self._thread.ident is None:
            self._thread.start()
            # A thread inside TensorFlow while the interpreter ends would abort the process.
            atexit.register(self._leave)

    def _watch(self) -> None:
        while not self._leaving.wait(self._seconds / _LOOKS_WITHIN_LIMIT):
            if max((count.waited() for count in list(self._counts)), default=0.0) > self._seconds:
                context.context().abort_collective_ops(
                    tf.errors.DEADLINE_EXCEEDED,
                    f"this rank has waited for {self._seconds:g} s in a collective that another "
                    "rank has not called: see which rank did not come, and where it is, in the "
                    "logs of all ranks (docs/troubleshooting.md, 'hangs')",
                )
                return

    def _leave(self) -> None:
        self._leaving.set()
        self._thread.join()
