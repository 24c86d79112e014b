"""Requests to stop: SIGTERM, Ctrl-C or a closed terminal, once to save and twice to kill."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from launcher.agent import shared_signals

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ONE_REQUEST_SECONDS = 2.0  # to preempt a job, Slurm sends SIGTERM twice


class StopRequests:
    """`signal` is the first one received, `count` how many; each makes `descriptor` readable."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.count = 0
        self._latest = float("-inf")
        self.descriptor, self._writing = os.pipe()
        for descriptor in (self.descriptor, self._writing):
            os.set_blocking(descriptor, False)

    def requested(self) -> bool:
        return self.count > 0

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, else 143."""
        return 130 if self.signal == signal.SIGINT else 143

    def drain(self) -> None:
        """Makes `descriptor` unreadable until the next signal."""
        with suppress(BlockingIOError):
            os.read(self.descriptor, 64)

    def close(self) -> None:
        os.close(self.descriptor)
        os.close(self._writing)

    @contextmanager
    def listening(self) -> Iterator["StopRequests"]:
        """Handles the signals while open; only in the main thread."""
        before = {number: signal.signal(number, self._take) for number in _SIGNALS}
        # A byte per signal wakes the supervisor from its poll.
        previous = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        try:
            yield self
        finally:
            signal.set_wakeup_fd(previous)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        before, self._latest = self._latest, time.monotonic()
        repeated = number == signal.SIGTERM and self._latest - before < _ONE_REQUEST_SECONDS
        if repeated and shared_signals.reach_every_process():
            return
        self.count += 1
        self.signal = self.signal or signal.Signals(number)
