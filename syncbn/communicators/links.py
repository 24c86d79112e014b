"""Opens the connections of a direct exchange: sockets between hosts, memory within a host.

Each rank listens while the exchange is opened, on a Unix socket for ranks of its own host and on
the network interface of the job for others. Whoever connects must present the token of the group.
"""

import contextlib
import hmac
import logging
import os
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from syncbn.communicators.addresses import Address, partners
from syncbn.errors import WorldError
from syncbn.native.exchange import Connection

_log = logging.getLogger(__name__)

_TOKEN_BYTES = 32
_HELLO = struct.Struct(f"<{_TOKEN_BYTES}sii")  # token, rank, purpose
_WATCH, _CHANNEL = 0, 1
_WELCOME = b"\1"

# Descriptors by rank and purpose.
_Ends = dict[tuple[int, int], int]


@dataclass
class _Caller:
    """A new connection whose hello has not arrived completely."""

    line: socket.socket
    origin: str
    hello: bytes = b""
    memory: list[int] = field(default_factory=list)


class Links:
    """Opens the connections of one rank: `with Links(...) as links`.

    Args:
        ip: The address to listen on for other hosts.
        host: The identity of this host, or an empty string to share no memory.
        memory_size: Bytes of memory that two ranks of a host share.

    Attributes:
        address: What the other ranks must know, to be passed to their `open`.
    """

    def __init__(self, ip: str, host: str, memory_size: int) -> None:
        self._memory_size = memory_size
        # Everything is closed in the end; `open` returns duplicates.
        self._resources = contextlib.ExitStack()
        name = f"syncbn-{secrets.token_hex(16)}"
        self._listeners = [self._listen(socket.AF_INET, (ip, 0))]
        port = self._listeners[0].getsockname()[1]
        if host:
            self._listeners.append(self._listen(socket.AF_UNIX, f"\0{name}"))
        self.address = Address(host, name, ip, port, secrets.token_hex(_TOKEN_BYTES))

    def __enter__(self) -> "Links":
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def open(self, rank: int, addresses: Sequence[Address], seconds: float) -> list[Connection]:
        """Connects `rank` with its partners; every rank must call it.

        Args:
            rank: This rank.
            addresses: Those of all ranks.
            seconds: The time limit.

        Raises:
            WorldError: A partner cannot be reached, or did not connect in time.
        """
        deadline = time.monotonic() + seconds
        token = bytes.fromhex(addresses[0].token)
        everyone = partners(rank, len(addresses))
        ends: _Ends = {}
        # The higher rank calls. Nobody waits for an answer before it has called all its partners.
        calls = {p: self._call(rank, p, addresses, token, deadline) for p in everyone if p < rank}
        for _, theirs in calls.values():
            ends.update(theirs)
        ends.update(self._accept(rank, everyone, addresses, token, deadline))
        for partner, (lines, _) in calls.items():
            for line in lines:
                _expect_welcome(partner, addresses[partner], line, deadline)
        return [
            Connection(
                partner,
                os.dup(ends[partner, _WATCH]),
                os.dup(ends[partner, _CHANNEL]),
                addresses[rank].shares_memory_with(addresses[partner]),
            )
            for partner in everyone
        ]

    def _listen(self, family: int, address: tuple[str, int] | str) -> socket.socket:
        listener = self._resources.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.bind(address)
        listener.listen(128)
        listener.setblocking(False)
        return listener

    def _call(
        self, rank: int, partner: int, addresses: Sequence[Address], token: bytes, deadline: float
    ) -> tuple[list[socket.socket], _Ends]:
        """Connects to a lower rank; within a host that is one connection that transfers memory."""
        there = addresses[partner]
        lines: list[socket.socket] = []
        ends: _Ends = {}
        shares = addresses[rank].shares_memory_with(there)
        for purpose in (_WATCH,) if shares else (_WATCH, _CHANNEL):
            line = self._resources.enter_context(
                socket.socket(socket.AF_UNIX if shares else socket.AF_INET, socket.SOCK_STREAM)
            )
            line.settimeout(_left(deadline))
            memory = []
            try:
                line.connect(f"\0{there.local}" if shares else (there.ip, there.port))
                if shares:
                    memory.append(os.memfd_create("syncbn"))
                    self._resources.callback(os.close, memory[0])
                    os.ftruncate(memory[0], self._memory_size)
                    ends[partner, _CHANNEL] = memory[0]
                socket.send_fds(line, [_HELLO.pack(token, rank, purpose)], memory)
            except OSError as error:
                raise _unreachable(partner, there, error) from error
            lines.append(line)
            ends[partner, purpose] = line.fileno()
        return lines, ends

    def _accept(
        self,
        rank: int,
        everyone: Sequence[int],
        addresses: Sequence[Address],
        token: bytes,
        deadline: float,
    ) -> _Ends:
        """Waits for the connections of all higher partners.

        Other callers are refused, and cannot delay the partners by sending nothing.
        """
        missing = {(p, purpose) for p in everyone if p > rank for purpose in (_WATCH, _CHANNEL)}
        ends: _Ends = {}
        with selectors.DefaultSelector() as selector:
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            while missing:
                if time.monotonic() > deadline:
                    late = ", ".join(str(p) for p in sorted({p for p, _ in missing}))
                    raise WorldError(f"rank {late} did not connect to rank {rank} in time")
                for key, _ in selector.select(_left(deadline)):
                    if not isinstance(key.data, _Caller):
                        self._register_caller(selector, key.fileobj)  # type: ignore[arg-type]
                        continue
                    caller = key.data
                    if self._listen_to(caller):
                        continue
                    selector.unregister(caller.line)
                    theirs = _introduced(caller, rank, addresses, token)
                    if not theirs or not theirs.keys() <= missing:
                        _log.warning(
                            "rank %d refused a connection from %s: it does not belong to this job",
                            rank,
                            caller.origin,
                        )
                        caller.line.close()
                        continue
                    with contextlib.suppress(OSError):  # it fails again in use
                        caller.line.sendall(_WELCOME)
                    ends.update(theirs)
                    missing -= theirs.keys()
        return ends

    def _register_caller(self, selector: selectors.BaseSelector, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has gone already
            line, origin = listener.accept()
            self._resources.enter_context(line)
            line.setblocking(False)
            told = "this host"
            if listener.family == socket.AF_INET:
                told = f"{origin[0]}:{origin[1]}"
            selector.register(line, selectors.EVENT_READ, _Caller(line, told))

    def _listen_to(self, caller: _Caller) -> bool:
        """Receives what has arrived. Returns whether to wait for more."""
        try:
            more, memory, _, _ = socket.recv_fds(caller.line, _HELLO.size - len(caller.hello), 1)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for descriptor in memory:
            self._resources.callback(os.close, descriptor)
        caller.hello += more
        caller.memory += memory
        return more != b"" and len(caller.hello) < _HELLO.size


def _introduced(caller: _Caller, rank: int, addresses: Sequence[Address], token: bytes) -> _Ends:
    """The ends that a connection provides; none if it does not come from a rank of the group."""
    if len(caller.hello) != _HELLO.size:
        return {}
    presented, partner, purpose = _HELLO.unpack(caller.hello)
    if not hmac.compare_digest(presented, token) or not 0 <= partner < len(addresses):
        return {}
    ends = {(partner, purpose): caller.line.fileno()}
    if not addresses[rank].shares_memory_with(addresses[partner]):
        return ends
    # Whoever could replace shared memory by a smaller file could end this process.
    if caller.line.family != socket.AF_UNIX or len(caller.memory) != 1:
        return {}
    return ends | {(partner, _CHANNEL): caller.memory[0]}


def _expect_welcome(partner: int, there: Address, line: socket.socket, deadline: float) -> None:
    line.settimeout(_left(deadline))
    try:
        welcome = line.recv(1)
    except OSError as error:
        raise _unreachable(partner, there, error) from error
    if welcome != _WELCOME:
        raise WorldError(f"rank {partner} refused the connection")


def _left(deadline: float) -> float:
    return max(0.05, deadline - time.monotonic())


def _unreachable(partner: int, there: Address, error: OSError) -> WorldError:
    return WorldError(
        f"rank {partner} cannot be reached at {there.ip}:{there.port} ({error}): allow TCP "
        "connections between the ranks, or set SYNCBN_EXCHANGE=0 for all of them"
    )
