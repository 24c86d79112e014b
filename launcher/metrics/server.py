"""Serves a page of metrics over HTTP, with /healthz and /readyz beside it.

curl http://127.0.0.1:9400/metrics
"""

import socket
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from launcher.atomic import replace_json

LOOPBACK = "127.0.0.1"

_PLAIN = "text/plain; charset=utf-8"


class MetricsServer:
    """Serves in its own threads until `close`.

    Args:
        text: Returns the page.
        host: The address to listen on.
        port: 0 for a free one.
        waiting: Returns why the process is not ready yet, or None once it is.

    Raises:
        OSError: The address cannot be listened on.
    """

    def __init__(
        self,
        text: Callable[[], bytes],
        host: str,
        port: int,
        waiting: Callable[[], str | None] = lambda: None,
    ) -> None:
        handler = partial(_Handler, text, waiting)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        kind = type("Server", (ThreadingHTTPServer,), {"address_family": family})
        self._server = kind((host, port), handler)
        self._server.daemon_threads = True
        self.host, self.port = host, int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    @property
    def address(self) -> str:
        """host:port, as a client writes it: the name of this machine for all of its addresses."""
        host = socket.gethostname() if self.host in {"0.0.0.0", "::"} else self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    # A client that sends nothing must not occupy a thread forever.
    timeout = 10
    protocol_version = "HTTP/1.1"

    def __init__(
        self, text: Callable[[], bytes], waiting: Callable[[], str | None], *connection: Any
    ) -> None:
        self._text, self._waiting = text, waiting
        super().__init__(*connection)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/metrics":
            try:
                self._answer(HTTPStatus.OK, self._text(), CONTENT_TYPE_LATEST)
            except Exception as error:
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n".encode())
        elif path == "/healthz":
            self._answer(HTTPStatus.OK, b"alive\n")
        elif path == "/readyz":
            reason = self._waiting()
            status = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, f"{reason or 'ready'}\n".encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"expected /metrics, /healthz or /readyz\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str = _PLAIN) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Does not log scrapes."""

    def version_string(self) -> str:
        return "metrics"


def record_address(path: Path, server: MetricsServer, labels: dict[str, str]) -> None:
    """Writes the server's address as a target file for Prometheus' file_sd_configs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = [{"targets": [server.address], "labels": labels}]
    replace_json(path, content, indent=None, durable=False)
