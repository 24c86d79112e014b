"""SIGTERM as a request: finish the step, save, leave; the second one ends the process at once."""

import os
import signal
import threading
import time

EXIT_CODE = 143

# horovodrun signals a process and its group: what comes that close is one request.
_ONE_REQUEST_SECONDS = 1.0


class StopRequest:
    """Set once SIGTERM has come. Made in the main thread.

    The handler in C that Python installs writes a byte into a pipe, in whichever thread the kernel
    runs it, and a thread of its own reads the pipe: a handler in Python would have to wait for the
    main thread, which may hang in a collective with a peer that is gone. (To block the signal and
    wait for it needs it blocked in every thread, those included that imports have started before.)
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
        """Takes SIGTERM back from TensorFlow, which has a handler of its own from the moment when
        it joins a cluster, and does nothing but log it."""
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)
        signal.siginterrupt(signal.SIGTERM, False)  # system calls of the engines go on

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
