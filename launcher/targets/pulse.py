"""A beat the launcher sends to guards that have no pipe to it: those below mpirun on other hosts.

A guard that hears nothing any more is cut off and ends its rank, whatever mpirun's daemon does.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_BEAT = b"tick\n"
_SECONDS = 1.0


@contextmanager
def pulse(address: str) -> Iterator[int]:
    """Beats once a second to whoever connects to `address`; gives the port. Nothing is read."""
    server = socket.create_server((address, 0), backlog=1024)
    server.settimeout(0.1)
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(server, over), daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        over.set()
        thread.join()
        server.close()


def _beat(server: socket.socket, over: threading.Event) -> None:
    listeners: list[socket.socket] = []
    while not over.wait(_SECONDS):
        with suppress(TimeoutError):
            while True:
                listener, _ = server.accept()
                listener.setblocking(False)
                listeners.append(listener)
        for listener in list(listeners):
            try:
                listener.send(_BEAT)
            except BlockingIOError:  # cut off, or slow: it judges for itself
                continue
            except OSError:
                listener.close()
                listeners.remove(listener)
    for listener in listeners:
        listener.close()
