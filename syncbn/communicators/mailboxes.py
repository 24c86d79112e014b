"""Non-blocking text messages between ranks, with which `consistency` compares fingerprints.

A collective would block a rank that trains alone for a while. A message is kept until its receiver
reads it, possibly never.
"""

import http.client
import os
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context

_TIMEOUT_SECONDS = 5.0
_MAX_UNREAD = 64


class Mailbox(ABC):
    """Point-to-point text messages between ranks of the world. No method blocks."""

    @abstractmethod
    def send(self, key: str, text: str, receiver: int) -> None:
        """Sends `text` to rank `receiver` under `key`, which is used once."""

    @abstractmethod
    def receive(self, key: str, sender: int) -> str | None:
        """The text that rank `sender` sent under `key`; None if it has not arrived."""


class MpiMailbox(Mailbox):
    """Messages over an MPI communicator that nothing else uses.

    Args:
        mpi: The module `mpi4py.MPI`.
        comm: A duplicate of the world communicator.
    """

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi, self._comm = mpi, comm
        self._pending: list[tuple[Any, bytes]] = []
        self._arrived: dict[tuple[int, str], str] = {}

    def send(self, key: str, text: str, receiver: int) -> None:
        if self._mpi.Is_finalized():  # by Horovod, as soon as one of its ranks exits
            return
        self._pending = [(sent, data) for sent, data in self._pending if not sent.Test()]
        data = f"{key}\n{text}".encode()
        self._pending.append((self._comm.Isend([data, self._mpi.BYTE], receiver), data))

    def receive(self, key: str, sender: int) -> str | None:
        if self._mpi.Is_finalized():
            return self._arrived.pop((sender, key), None)
        status = self._mpi.Status()
        while (message := self._comm.Improbe(sender, status=status)) is not None:
            data = bytearray(status.Get_count(self._mpi.BYTE))
            message.Recv([data, self._mpi.BYTE])
            found, text = data.decode().split("\n", 1)
            self._arrived[sender, found] = text
        while len(self._arrived) > _MAX_UNREAD:
            del self._arrived[next(iter(self._arrived))]
        return self._arrived.pop((sender, key), None)


class RendezvousMailbox(Mailbox):
    """Messages over the rendezvous key-value server of a Horovod job over Gloo.

    Args:
        rank: Returns the rank of this process, which changes when an elastic job resizes.
        address: Host and port of the server.
    """

    def __init__(self, rank: Callable[[], int], address: tuple[str, int]) -> None:
        self._rank, self._address = rank, address

    def send(self, key: str, text: str, receiver: int) -> None:
        self._request("PUT", f"{key} {self._rank()} {receiver}", text.encode())

    def receive(self, key: str, sender: int) -> str | None:
        found = self._request("GET", f"{key} {sender} {self._rank()}")
        return None if found is None else found.decode()

    def _request(self, method: str, key: str, body: bytes | None = None) -> bytes | None:
        connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request(method, f"/syncbn/{urllib.parse.quote(key, safe='')}", body)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            return None  # the job is ending, or its server does not accept requests
        finally:
            connection.close()
        return content if response.status == http.client.OK else None


def rendezvous_mailbox(rank: Callable[[], int]) -> RendezvousMailbox | None:
    """A mailbox at the rendezvous server of this Horovod job, or None if it has no server."""
    host = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR")
    port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT", "")
    return RendezvousMailbox(rank, (host, int(port))) if host and port.isdecimal() else None


class ClusterMailbox(Mailbox):
    """Messages over the key-value store of TensorFlow's coordination service.

    Args:
        rank: The rank of this process.
    """

    def __init__(self, rank: int) -> None:
        self._rank, self._store = rank, context.context()

    def send(self, key: str, text: str, receiver: int) -> None:
        try:
            self._store.set_config_key_value(f"syncbn/{key}/{self._rank}/{receiver}", text)
        except tf.errors.OpError:  # the service ends with the job
            return

    def receive(self, key: str, sender: int) -> str | None:
        try:
            # The shortest timeout, in milliseconds: 0 waits forever.
            return self._store.get_config_key_value(f"syncbn/{key}/{sender}/{self._rank}", 1)
        except tf.errors.OpError:
            return None
