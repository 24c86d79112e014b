"""The tests' API server as far as HTTP goes: whole answers, errors, and streams that can be cut."""

import json
from abc import ABC, abstractmethod
from http.server import BaseHTTPRequestHandler

from tests.launcher.targets.cluster.api_objects import Object


class Replies(BaseHTTPRequestHandler, ABC):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Logs nothing."""

    @abstractmethod
    def serve(self, method: str) -> None:
        """Answers one request."""

    def do_GET(self) -> None:
        self.serve("GET")

    def do_POST(self) -> None:
        self.serve("POST")

    def do_PATCH(self) -> None:
        self.serve("PATCH")

    def do_DELETE(self) -> None:
        self.serve("DELETE")

    def _fail(
        self,
        status: int,
        message: str,
        reason: str = "",
        details: Object | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        content = {"kind": "Status", "status": "Failure", "message": message, "reason": reason}
        self._send(status, {**content, "code": status, "details": details or {}}, headers)

    def _send(
        self, status: int, content: Object, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self._send_text(status, json.dumps(content), "application/json", headers)

    def _send_text(
        self,
        status: int,
        text: str,
        kind: str = "text/plain",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(data))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _begin_chunks(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _end_chunks(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def _cut(self) -> None:
        """Drops the connection in the middle of the answer."""
        self.close_connection = True
