"""The HTTP side of a page: what it answers, where it listens, and what it does with bad clients."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from launcher.metrics import RANK_METRICS, Page
from launcher.metrics.server import MetricsServer, record_address


def _get(server: MetricsServer, path: str, method: str = "GET") -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://{server.address}{path}", method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


@pytest.fixture
def waiting() -> list[str | None]:
    return ["has not joined the job yet"]


@pytest.fixture
def server(waiting: list[str | None]) -> Iterator[MetricsServer]:
    server = MetricsServer(Page(RANK_METRICS).text, "127.0.0.1", 0, lambda: waiting[0])
    yield server
    server.close()


def test_metrics_are_in_prometheus_text_format(server: MetricsServer) -> None:
    status, content_type, text = _get(server, "/metrics?name=whatever")
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    assert any(f.name == "training_steps" for f in text_string_to_metric_families(text))


def test_healthy_from_the_start_ready_once_set(
    server: MetricsServer, waiting: list[str | None]
) -> None:
    assert _get(server, "/healthz")[::2] == (200, "alive\n")
    assert _get(server, "/readyz")[::2] == (503, "has not joined the job yet\n")
    waiting[0] = None
    assert _get(server, "/readyz")[::2] == (200, "ready\n")


def test_other_paths_are_not_found_and_head_has_no_body(server: MetricsServer) -> None:
    assert _get(server, "/../etc/passwd")[0] == 404
    assert _get(server, "/healthz", "HEAD") == (200, "text/plain; charset=utf-8", "")
    assert _get(server, "/metrics", "POST")[0] == 501


def test_it_listens_on_loopback_only(server: MetricsServer) -> None:
    assert server.host == "127.0.0.1"
    with socket.socket() as other:
        # Another address of this host has the port free, so nothing listens there.
        other.bind(("127.0.0.2", server.port))


def test_a_port_in_use_is_an_error(server: MetricsServer) -> None:
    with pytest.raises(OSError, match="in use"):
        MetricsServer(bytes, "127.0.0.1", server.port)


def test_a_silent_client_does_not_block_others(server: MetricsServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        assert _get(server, "/healthz")[0] == 200


def test_a_failing_page_is_an_error_for_that_request_only() -> None:
    def fail() -> bytes:
        raise RuntimeError("no page today")

    server = MetricsServer(fail, "127.0.0.1", 0)
    try:
        assert _get(server, "/metrics")[::2] == (500, "no page today\n")
        assert _get(server, "/healthz")[0] == 200
    finally:
        server.close()


def test_the_address_is_recorded_as_a_target_file(server: MetricsServer, tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "targets" / "rank-1.json"
    record_address(path, server, {"rank": "1"})
    assert json.loads(path.read_text()) == [
        {"targets": [f"127.0.0.1:{server.port}"], "labels": {"rank": "1"}}
    ]


def test_ipv6_addresses_are_written_with_brackets() -> None:
    try:
        server = MetricsServer(bytes, "::1", 0)
    except OSError:
        pytest.skip("no IPv6 on this machine")
    try:
        assert server.address == f"[::1]:{server.port}"
        assert _get(server, "/healthz")[0] == 200
    finally:
        server.close()


def test_a_server_on_all_addresses_is_found_by_the_name_of_its_machine(tmp_path: Path) -> None:
    server = MetricsServer(Page(RANK_METRICS).text, "0.0.0.0", 0)
    try:
        record_address(tmp_path / "targets.json", server, {})
    finally:
        server.close()
    (target,) = json.loads((tmp_path / "targets.json").read_text())
    assert target["targets"] == [f"{socket.gethostname()}:{server.port}"]
