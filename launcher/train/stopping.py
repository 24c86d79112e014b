"""SIGTERM as a request to finish the step, save, and exit; a second one exits immediately."""

import os
import signal
import threading
import time

EXIT_CODE = 143

# horovodrun signals a process and then its group: signals this close together are one request.
_ONE_REQUEST_SECONDS = 1.0


class StopRequest:
    """Records whether SIGTERM has arrived. Must be created in the main thread.

    Python's C-level handler writes a byte to a pipe, in whichever thread the kernel runs it, and a
    background thread reads the pipe. A Python handler would wait for the main thread, which may be
    blocked in a collective with a lost peer. (`sigwait` would need the signal blocked in every
    thread, including those that imports have already started.)
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self.listen()
        threading.Thread(target=self._wait, name="sigterm", daemon=True).start()

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._requested.is_set()

    def listen(self) -> None:
        """Reinstalls the handler after TensorFlow has replaced it.

        On joining a cluster TensorFlow installs a handler that only logs the signal.
        """
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)
        # Does not interrupt system calls of the backends.
        signal.siginterrupt(signal.SIGTERM, False)

    def _wait(self) -> None:
        first: float | None = None
        while True:
            for number in os.read(self._reading, 64):
                if number != signal.SIGTERM:
                    continue
                now = time.monotonic()
                if first is None:
                    first = now
                    self._requested.set()
                elif now - first >= _ONE_REQUEST_SECONDS:
                    os._exit(EXIT_CODE)
