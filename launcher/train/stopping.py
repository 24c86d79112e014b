"""SIGTERM as a request: finish the step, save, leave; the second one ends the process at once."""

import os
import signal
import threading
import time

EXIT_CODE = 143

# horovodrun signals a process and its group: what comes that close is one request.
_ONE_REQUEST_SECONDS = 1.0


class StopRequest:
    """Set once SIGTERM has come.

    A thread of its own waits for the signal: a Python signal handler would have to wait for the
    main thread, which may hang in a collective with a peer that is gone. Install it before other
    threads start (they inherit that the signal is blocked for them).
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=self._wait, name="sigterm", daemon=True).start()

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._requested.is_set()

    def _wait(self) -> None:
        signal.sigwait({signal.SIGTERM})
        self._requested.set()
        first = time.monotonic()
        while time.monotonic() - first < _ONE_REQUEST_SECONDS:
            signal.sigwait({signal.SIGTERM})
        os._exit(EXIT_CODE)
