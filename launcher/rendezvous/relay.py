"""`relay.py HOST PORT`: connects standard input and output to a worker's port, as ssh would.

The first container runs one for every rank elsewhere. Exits with 255 when the connection closes.
"""

import os
import selectors
import signal
import socket
import sys

_CONNECT_SECONDS = 10.0
_LOST = 255


def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it may be sent to all processes: ranks save
    try:
        with socket.create_connection((host, port), _CONNECT_SECONDS) as connection:
            connection.settimeout(None)
            join(connection, 0, 1)
    except OSError as error:
        print(f"{host}:{port}: {error.strerror or error}", flush=True)
    sys.exit(_LOST)


def join(connection: socket.socket, source: int, sink: int) -> None:
    """Copies bytes in both directions until the connection closes. Raises OSError."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is connection:
                    data = connection.recv(65536)
                    if not data:
                        return
                    write_all(sink, data)
                elif data := os.read(source, 65536):
                    connection.sendall(data)
                else:
                    selector.unregister(source)
                    connection.shutdown(socket.SHUT_WR)


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main()
