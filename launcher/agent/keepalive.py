"""Keepalive lines for agents that have no pipe to the launcher: below mpirun on other hosts.

An agent that no longer receives them ends its rank, whatever mpirun's daemon does.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_BEAT = b"tick\n"
_SECONDS = 1.0


@contextmanager
def serve_keepalive(address: str) -> Iterator[int]:
    """Sends a line a second to every connection on `address`; gives the port. Reads nothing."""
    server = socket.create_server((address, 0), backlog=1024)
    server.settimeout(0.1)
    stopped = threading.Event()
    thread = threading.Thread(target=_beat, args=(server, stopped), daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        stopped.set()
        thread.join()
        server.close()


def _beat(server: socket.socket, stopped: threading.Event) -> None:
    listeners: list[socket.socket] = []
    while not stopped.wait(_SECONDS):
        with suppress(TimeoutError):
            while True:
                listener, _ = server.accept()
                listener.setblocking(False)
                listeners.append(listener)
        for listener in list(listeners):
            try:
                listener.send(_BEAT)
            except BlockingIOError:  # unreachable or slow: the agent applies its own timeout
                continue
            except OSError:
                listener.close()
                listeners.remove(listener)
    for listener in listeners:
        listener.close()
