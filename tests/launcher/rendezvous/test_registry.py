"""Which workers the leader accepts, its replies to them, and connections that it ignores."""

import socket
import threading
import time
from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import launcher.rendezvous.registry
from launcher.errors import LauncherError, UsageError
from launcher.rendezvous.network import address_to_listen_on
from launcher.rendezvous.registry import Registry
from launcher.rendezvous.wire import JoinRequest, WireError, ask, receive
from tests.launcher.rendezvous.members import free_port


def test_the_registry_assigns_indices_and_explains_refusals() -> None:
    with Registry("digits", 2, 1, port := free_port()) as registry:
        here = ("127.0.0.1", port)

        def join(id: str, **other: object) -> tuple[int | None, str | None]:  # noqa: A002
            fields = {"job": "digits", "id": id, "port": 1, "slots": 1, **other}
            answer = ask(here, JoinRequest(**fields)).reply  # type: ignore[arg-type]
            return answer.index, answer.refused

        assert join("a") == (1, None)
        assert join("b") == (2, None)
        assert join("a") == (1, None)
        assert join("c") == (None, "all 2 workers of this job have joined")
        assert join("c", index=2) == (2, None)  # the pod of this index was replaced
        assert join("d", job="x") == (None, "this is job 'digits', not 'x'")
        assert join("d", slots=3) == (None, "expected 1 ranks per container. Received: 3")
        assert join("d", index=7) == (None, "expected a worker from 1 to 2. Received: 7")
        assert [worker.id for worker in registry.wait(1)] == ["a", "c"]


def test_the_index_of_a_silent_worker_is_reassigned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launcher.rendezvous.registry, "_FRESH_SECONDS", 0.4)
    registry = Registry("digits", 2, 1, free_port())
    with registry:
        fields = {"job": "digits", "port": 1, "slots": 1}

        def join(id: str) -> int | None:  # noqa: A002
            return registry.register(JoinRequest(id=id, **fields), id).index  # type: ignore[arg-type]

        assert [join("a"), join("b"), join("c")] == [1, 2, None]
        time.sleep(0.5)
        assert join("b") == 2, "it is still there"
        assert join("c") == 1, "a has sent no request since"
        assert [worker.id for worker in registry.wait(1)] == ["c", "b"]
        assert join("a") is None


def test_missing_workers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher.rendezvous.registry, "_FRESH_SECONDS", 0.3)
    with Registry("digits", 2, 1, free_port()) as registry:
        registry.register(JoinRequest("digits", "a", 1, 1, None), "10.0.0.1")
        with pytest.raises(LauncherError, match=r"^worker 2 has not joined within 0 s$"):
            registry.wait(0)
        registry.register(JoinRequest("x", "b", 1, 1, None), "10.0.0.2")
        time.sleep(0.4)
        missing = r"worker 1 \(a\), 2 has not joined .*; 10\.0\.0\.2 was rejected: this is job"
        with pytest.raises(LauncherError, match=missing):
            registry.wait(0)
        with pytest.raises(LauncherError, match="stopped while waiting"):
            registry.wait(60, lambda: True)
    for workers, end in ((8, "7, 8"), (9, "7, 8 and more")):
        with (
            Registry("digits", workers, 1, free_port()) as registry,
            pytest.raises(LauncherError, match=f"worker 1, 2, 3, .* {end} has not joined"),
        ):
            registry.wait(0)


@pytest.mark.parametrize("result", [0, 3])
def test_finish_waits_until_all_present_workers_are_informed(
    monkeypatch: pytest.MonkeyPatch, result: int
) -> None:
    monkeypatch.setattr(launcher.rendezvous.registry, "_RESULT_SECONDS", 60.0)
    registry, ended = Registry("digits", 3, 1, free_port()), threading.Event()

    def join(id: str) -> int | None:  # noqa: A002
        return registry.register(JoinRequest("digits", id, 1, 1, None), id).result

    def finish() -> None:
        registry.finish(result)
        ended.set()

    with registry:
        registry.finish(result)  # no worker has joined, so it does not wait
        registry = Registry("digits", 3, 1, free_port())
    with registry:
        assert [join("a"), join("b")] == [None, None]
        waiting = threading.Thread(target=finish)
        waiting.start()
        while registry._result is None:
            time.sleep(0.01)
        assert join("a") == result
        assert not ended.wait(0.5), "b does not know it yet"
        assert join("b") == result
        assert ended.wait(30)
        waiting.join()


def test_finish_does_not_wait_for_silent_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launcher.rendezvous.registry, "_FRESH_SECONDS", 0.1)
    monkeypatch.setattr(launcher.rendezvous.registry, "_RESULT_SECONDS", 1000.0)
    with Registry("digits", 2, 1, free_port()) as registry:
        registry.register(JoinRequest("digits", "a", 1, 1, None), "a")
        registry.finish(0)  # for longer than the limit of a test only if a were waited for
    monkeypatch.setattr(launcher.rendezvous.registry, "_FRESH_SECONDS", 1000.0)
    monkeypatch.setattr(launcher.rendezvous.registry, "_RESULT_SECONDS", 0.2)
    with Registry("digits", 2, 1, free_port()) as registry:
        registry.register(JoinRequest("digits", "a", 1, 1, None), "a")
        registry.finish(0)  # nor forever for one that sends no request


def test_a_port_can_be_reused_immediately() -> None:
    port = free_port()
    for _ in range(2):
        with Registry("digits", 1, 1, port):
            assert ask(("127.0.0.1", port), JoinRequest("digits", "a", 1, 1, None)).reply.index == 1


# Some containers have an index (pods of an indexed Job), others accept any.
CONTAINERS = {"a": None, "b": None, "c": None, "d": 1, "e": 2}


@given(st.lists(st.tuples(st.sampled_from(sorted(CONTAINERS)), st.floats(0.1, 3.0)), max_size=30))
def test_in_any_order_of_joins_and_losses_an_index_has_one_worker(
    comings: list[tuple[str, float]],
) -> None:
    now, held = 0.0, dict[int, tuple[str, float]]()
    registry = Registry("digits", 2, 1, 0)
    registry._server.server_close()  # requests do not come over the network
    with mock.patch.object(
        launcher.rendezvous.registry, "time", SimpleNamespace(monotonic=lambda: now)
    ):
        for name, seconds in comings:
            now += seconds
            index = CONTAINERS[name]
            place = registry.register(JoinRequest("digits", name, 1, 1, index), name).index
            mine = [one for one, (holder, _) in held.items() if holder == name]
            fresh = {one for one, (_, last_seen) in held.items() if now - last_seen <= 4.0}
            if index is not None:
                assert place == index, "it replaces whoever was there"
            elif mine:
                assert [place] == mine, "it keeps its place"
            elif place is None:
                assert fresh == {1, 2}, "refused only where all are there"
            else:
                assert place not in fresh, "nobody is driven out"
            if place is not None:
                held[place] = (name, now)
            assert len({holder for holder, _ in held.values()}) == len(held)


def test_connections_of_other_protocols_are_closed() -> None:
    with Registry("job", 1, 1, port := free_port()) as registry:
        for noise in (b"\x00" * 10 + b"\n", b"[]\n", b'{"job": 1}\n', b"x" * 200_000):
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                try:
                    connection.sendall(noise)
                    assert connection.recv(10) == b""
                except ConnectionError:
                    pass  # it hung up while we were still talking
        with pytest.raises(LauncherError, match="worker 1 has not joined"):
            registry.wait(0.2)
        with pytest.raises(UsageError, match=r"container.port: \d+ cannot be used"):
            Registry("job", 1, 1, port)


@pytest.mark.parametrize("line", [b"\n", b"{\n", b"3\n", b""])
def test_a_line_that_is_no_object_is_an_error(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(line)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(WireError, match="expected"):
            receive(ours)


@pytest.mark.parametrize(
    ("head", "address"),
    [(None, ""), ("localhost", "127.0.0.1"), ("10.1.2.3", "10.1.2.3"), ("job-0.job", "")],
)
def test_the_first_container_listens_on_the_given_address(head: str | None, address: str) -> None:
    assert address_to_listen_on(head) == address
