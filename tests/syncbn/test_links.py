"""The connections of a direct exchange: real sockets, each rank in a thread of this process."""

import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from syncbn.communicators.addresses import Address, address_of_job, host_identity, partners
from syncbn.communicators.links import _HELLO, Links
from syncbn.errors import WorldError
from syncbn.native.exchange import Connection

LOOPBACK = "127.0.0.1"


@contextmanager
def ranks(size: int, host: str) -> Iterator[list[Links]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Links(LOOPBACK, host, 4096)) for _ in range(size)]


def open_all(links: Sequence[Links], seconds: float = 10.0) -> list[list[Connection]]:
    """What `open` returns on each rank; raises the first error."""
    addresses = [Address.from_json(link.address.to_json()) for link in links]
    with ThreadPoolExecutor(len(links)) as pool:
        opened = [
            pool.submit(link.open, rank, addresses, seconds) for rank, link in enumerate(links)
        ]
    return [future.result() for future in opened]


def close(connections: Sequence[Sequence[Connection]]) -> None:
    for connection in (c for each in connections for c in each):
        os.close(connection.watch)
        os.close(connection.channel)


@pytest.mark.parametrize("size", range(1, 18))
def test_partners_are_mutual(size: int) -> None:
    everyone = [partners(rank, size) for rank in range(size)]
    for rank, found in enumerate(everyone):
        assert rank not in found
        assert all(rank in everyone[partner] for partner in found)
        assert len(found) <= size.bit_length()


@pytest.mark.parametrize("host", ["", "one host"])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_every_rank_is_connected_with_its_partners(size: int, host: str) -> None:
    with ranks(size, host) as links:
        opened = open_all(links)
    for rank, connections in enumerate(opened):
        assert [connection.rank for connection in connections] == partners(rank, size)
        for connection in connections:
            assert connection.shared == (host != "")
            (there,) = (c for c in opened[connection.rank] if c.rank == rank)
            if connection.shared:
                same = [os.fstat(c.channel) for c in (connection, there)]
                assert os.path.samestat(*same)
                assert same[0].st_size == 4096
            else:
                os.write(connection.channel, b"%d" % rank)
                assert os.read(there.channel, 9) == b"%d" % rank
            os.write(connection.watch, b"%d" % rank)
            assert os.read(there.watch, 9) == b"%d" % rank
    close(opened)


@pytest.mark.parametrize("stranger", ["wrong token", "wrong rank", "garbage", "silent", "gone"])
def test_strangers_are_refused(stranger: str, caplog: pytest.LogCaptureFixture) -> None:
    with ranks(2, "") as links:
        there, token = links[0].address, bytes.fromhex(links[0].address.token)
        with socket.create_connection((there.ip, there.port)) as line:
            line.settimeout(10)
            hello = {
                "wrong token": _HELLO.pack(b"x" * 32, 1, 0),
                "wrong rank": _HELLO.pack(token, 5, 0),
                "garbage": b"GET / HTTP/1.0\r\n\r\n" + b"x" * 40,
            }
            line.sendall(hello.get(stranger, b""))
            if stranger == "gone":
                line.close()
            opened = open_all(links)
            if stranger in hello:
                with pytest.raises(ConnectionResetError) if stranger == "garbage" else ExitStack():
                    assert line.recv(1) == b""
        if stranger != "silent":
            assert "refused a connection from 127.0.0.1:" in caplog.text
            assert "does not belong to this job" in caplog.text
        close(opened)


def test_a_stranger_cannot_provide_the_memory() -> None:
    """A rank of another host, or a file of another size, would end the process with SIGBUS."""
    with ranks(2, "one host") as links:
        there, token = links[0].address, bytes.fromhex(links[0].address.token)
        with socket.create_connection((there.ip, there.port)) as line:
            line.settimeout(10)
            line.sendall(_HELLO.pack(token, 1, 0))
            opened = open_all(links)
            assert line.recv(1) == b""
        close(opened)


def test_a_rank_that_does_not_connect_is_named() -> None:
    with ranks(2, "") as links:
        addresses = [link.address for link in links]
        with pytest.raises(WorldError, match="rank 1 did not connect to rank 0 in time"):
            links[0].open(0, addresses, 0.2)


def test_an_address_that_cannot_be_reached_is_named() -> None:
    with ranks(2, "") as links:
        addresses = [link.address for link in links]
        links[0].__exit__()
        with pytest.raises(WorldError, match=r"rank 0 cannot be reached at 127.0.0.1:\d+"):
            links[1].open(1, addresses, 1.0)


def test_no_descriptor_is_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with ranks(4, "one host") as links:
        close(open_all(links))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_address_is_that_of_the_interface_of_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_GLOO_IFACE", "lo")
    assert address_of_job() == LOOPBACK
    monkeypatch.delenv("HOROVOD_GLOO_IFACE")
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1")
    assert address_of_job() == LOOPBACK


def test_processes_of_this_host_have_one_identity() -> None:
    assert host_identity() == host_identity() != ""
