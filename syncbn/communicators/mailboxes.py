"""Short texts between ranks that no rank waits for: `consistency` compares fingerprints by them.

Collectives would make a rank that trains alone for a while wait for the others. A text is kept
until its receiver looks for it, or for ever unseen.
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
_KEPT = 64


class Mailbox(ABC):
    """Sends texts to single ranks of the world. No method waits for another rank."""

    @abstractmethod
    def send(self, key: str, text: str, receiver: int) -> None:
        """Leaves `text` for rank `receiver` under `key`, which is used once; may be called late."""

    @abstractmethod
    def receive(self, key: str, sender: int) -> str | None:
        """What rank `sender` has left here under `key`; None if it is not there (yet)."""


class MpiMailbox(Mailbox):
    """By point-to-point messages of an MPI communicator that nothing else uses.

    Args:
        mpi: The module `mpi4py.MPI`.
        comm: A duplicate of the world's communicator.
    """

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi, self._comm = mpi, comm
        self._under_way: list[tuple[Any, bytes]] = []
        self._arrived: dict[tuple[int, str], str] = {}

    def send(self, key: str, text: str, receiver: int) -> None:
        if self._mpi.Is_finalized():  # by Horovod, as soon as one of its ranks leaves
            return
        self._under_way = [(sent, data) for sent, data in self._under_way if not sent.Test()]
        data = f"{key}\n{text}".encode()
        self._under_way.append((self._comm.Isend([data, self._mpi.BYTE], receiver), data))

    def receive(self, key: str, sender: int) -> str | None:
        if self._mpi.Is_finalized():
            return self._arrived.pop((sender, key), None)
        status = self._mpi.Status()
        while (message := self._comm.Improbe(sender, status=status)) is not None:
            data = bytearray(status.Get_count(self._mpi.BYTE))
            message.Recv([data, self._mpi.BYTE])
            found, text = data.decode().split("\n", 1)
            self._arrived[sender, found] = text
        while len(self._arrived) > _KEPT:
            del self._arrived[next(iter(self._arrived))]
        return self._arrived.pop((sender, key), None)


class RendezvousMailbox(Mailbox):
    """By the key-value server at which the ranks of a Horovod job over Gloo meet.

    Args:
        rank: Gives the rank of this process, which changes when an elastic job resizes.
        address: Host and port of the server.
    """

    def __init__(self, rank: Callable[[], int], address: tuple[str, int]) -> None:
        self._rank, self._address = rank, address

    def send(self, key: str, text: str, receiver: int) -> None:
        self._ask("PUT", f"{key} {self._rank()} {receiver}", text.encode())

    def receive(self, key: str, sender: int) -> str | None:
        found = self._ask("GET", f"{key} {sender} {self._rank()}")
        return None if found is None else found.decode()

    def _ask(self, method: str, key: str, body: bytes | None = None) -> bytes | None:
        connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request(method, f"/syncbn/{urllib.parse.quote(key, safe='')}", body)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            return None  # the job is ending, or its server does without this
        finally:
            connection.close()
        return content if response.status == http.client.OK else None


def rendezvous_mailbox(rank: Callable[[], int]) -> RendezvousMailbox | None:
    """The mailbox at the rendezvous server of this Horovod job, or None where there is none."""
    host = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR")
    port = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_PORT", "")
    return RendezvousMailbox(rank, (host, int(port))) if host and port.isdecimal() else None


class ClusterMailbox(Mailbox):
    """By the key-value store of TensorFlow's coordination service.

    Args:
        rank: Of this process.
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
            # The least time that the service knows, a millisecond: 0 stands for ever.
            return self._store.get_config_key_value(f"syncbn/{key}/{sender}/{self._rank}", 1)
        except tf.errors.OpError:
            return None
