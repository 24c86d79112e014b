"""The protocol between the containers of a job: JSON lines over TCP, a request and a reply.

It transports who has joined and how the job ended, never a command: each container runs its own, so
the worst that another program on the job's network can do is end the job. Nothing is encrypted.
"""

import json
import socket
from dataclasses import asdict, dataclass
from typing import Any

from launcher.errors import LauncherError

_LONGEST_LINE = 1 << 16
_SECONDS = 5.0


class WireError(LauncherError):
    """What was received does not follow this protocol."""


@dataclass(frozen=True)
class JoinRequest:
    """A worker's request to join, sent every second.

    `id` is its host name, `index` its number among the workers (1, 2, ...) if it has one, `port`
    where it listens.
    """

    job: str
    id: str
    port: int
    slots: int
    index: int | None = None


@dataclass(frozen=True)
class JoinReply:
    """The index of the worker, or why it is refused; `result` is the exit code of an ended job."""

    index: int | None = None
    refused: str | None = None
    result: int | None = None


@dataclass(frozen=True)
class Exchange:
    """A reply, with the addresses of both sides."""

    reply: JoinReply
    own_address: str
    head_address: str


def ask(address: tuple[str, int], request: JoinRequest) -> Exchange:
    """Sends a request to the leader. Raises OSError, or WireError for an invalid reply."""
    with socket.create_connection(address, _SECONDS) as connection:
        send(connection, asdict(request))
        reply = _built(JoinReply, receive(connection))
        return Exchange(reply, connection.getsockname()[0], connection.getpeername()[0])


def receive_request(connection: socket.socket) -> JoinRequest:
    """Raises OSError or WireError."""
    return _built(JoinRequest, receive(connection))


def send(connection: socket.socket, content: dict[str, Any]) -> None:
    connection.sendall(json.dumps(content).encode() + b"\n")


def receive(connection: socket.socket) -> dict[str, Any]:
    """Reads exactly one line. Raises OSError or WireError."""
    connection.settimeout(_SECONDS)
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(4096, socket.MSG_PEEK)
        end = piece.find(b"\n") + 1
        if not piece or len(line) > _LONGEST_LINE:
            raise WireError("expected a line of JSON")
        line += connection.recv(end or len(piece))
    try:
        content = json.loads(line)
    except ValueError:
        raise WireError(f"expected a line of JSON. Received: {line[:80]!r}") from None
    if not isinstance(content, dict):
        raise WireError(f"expected a JSON object. Received: {line[:80]!r}")
    return content


def _built(kind: Any, content: dict[str, Any]) -> Any:
    try:
        return kind(**content)
    except TypeError:
        raise WireError(f"expected the fields of {kind.__name__}. Received: {content}") from None
