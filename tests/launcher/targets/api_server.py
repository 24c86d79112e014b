"""A small API server over real HTTP: lists, watches, patches, logs and errors as in Kubernetes.

It keeps objects and history and runs no controllers: the tests play those, over the same API.
"""

import json
import re
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.launcher.targets.api_objects import Object, Store, merged, selected

TOKEN = "a-token-of-the-tests"

_PATH = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<part>status|log))?$"
)
_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_NAMESPACES = re.compile(r"^/api/v1/namespaces(?:/[^/]+)?$")
KINDS = {
    ("", "pods"),
    ("", "services"),
    ("", "events"),
    ("batch", "jobs"),
    ("policy", "poddisruptionbudgets"),
    ("jobset.x-k8s.io", "jobsets"),
    ("kubeflow.org", "mpijobs"),
    ("trainer.kubeflow.org", "trainjobs"),
    ("trainer.kubeflow.org", "trainingruntimes"),
}


@dataclass(frozen=True)
class Fault:
    """An answer to give instead of the right one, to requests of a method on a path."""

    status: int
    method: str = ""
    path: str = ""
    message: str = "not now"
    headers: tuple[tuple[str, str], ...] = ()


class ApiServer:
    """Serves on a free port of loopback while open. `kinds` are those it knows."""

    def __init__(self) -> None:
        self.store = Store()
        self.kinds = set(KINDS)
        self.logs: dict[str, list[tuple[str, str]]] = {}
        self.faults: deque[Fault] = deque()
        self.requests: list[tuple[str, str]] = []
        self.forbidden = ""
        self.watch_events = 1_000_000  # a watch is cut after so many
        self.log_bytes: deque[int] = deque()  # the next logs are cut after so many bytes
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.closing = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "ApiServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing = True
        with self.store.changed:
            self.store.changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def compact(self) -> None:
        """Forgets what came before now: older watches are 410 Gone."""
        with self.store.changed:
            self.store.oldest = self.store.version
            self.store.history.clear()

    def say(self, pod: str, *lines: str) -> None:
        """Adds lines to the log of a pod."""
        with self.store.changed:
            for line in lines:
                stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"
                self.logs.setdefault(pod, []).append((stamp, line))
            self.store.changed.notify_all()


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"api": server})


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PATCH(self) -> None:
        self._serve("PATCH")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.api.requests.append((method, self.path))
        try:
            self._answer(method, url.path, query, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, method: str, path: str, query: dict[str, str], body: Object) -> None:
        for fault in list(self.api.faults):
            if fault.method in {"", method} and fault.path in self.path:
                self.api.faults.remove(fault)
                self._fail(fault.status, fault.message, headers=fault.headers)
                return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._fail(401, "Unauthorized")
        elif path == _REVIEW:
            allowed = self.api.forbidden != body["spec"]["resourceAttributes"]["verb"]
            self._send(201, {**body, "status": {"allowed": allowed}})
        elif _NAMESPACES.match(path):
            self._send(200, {"kind": "Namespace", "metadata": {"name": "any"}})
        elif (place := _PATH.match(path)) is None or not self._knows(place):
            self._send_text(404, "404 page not found\n")
        else:
            self._on_object(method, place, query, body)

    def _knows(self, place: re.Match[str]) -> bool:
        return (place["group"] or "", place["plural"]) in self.api.kinds

    def _on_object(
        self, method: str, place: re.Match[str], query: dict[str, str], body: Object
    ) -> None:
        where = (place["group"] or "", place["plural"], place["namespace"])
        name, part = place["name"], place["part"]
        if method == "POST":
            self._create(where, body)
        elif method == "GET" and name is None and query.get("watch") in {"true", "True", "1"}:
            self._watch(where, query)
        elif method == "GET" and name is None:
            self._list(where, query)
        elif method == "DELETE" and name is None:
            for key, value in self._matching(where, query):
                self._delete(key, value)
            self._send(200, {"kind": "Status", "status": "Success"})
        elif (found := self.api.store.objects.get((*where, name))) is None:
            details = {"name": name, "kind": where[1]}
            self._fail(404, f'{where[1]} "{name}" not found', "NotFound", details=details)
        elif part == "log":
            self._log(name, query)
        elif method == "GET":
            self._send(200, found)
        elif method == "DELETE":
            self._delete((*where, name), found)
            self._send(200, {"kind": "Status", "status": "Success"})
        else:
            self._patch((*where, name), found, part, body)

    def _create(self, where: tuple[str, str, str], body: Object) -> None:
        name = body.get("metadata", {}).get("name")
        if not name or not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
            self._fail(422, f'metadata.name: Invalid value: "{name}"', "Invalid")
            return
        if (*where, name) in self.api.store.objects:
            details = {"name": name, "kind": where[1]}
            message = f'{where[1]} "{name}" already exists'
            self._fail(409, message, "AlreadyExists", details=details)
            return
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        own = {"uid": str(uuid.uuid4()), "namespace": where[2], "creationTimestamp": stamp}
        value = {**body, "metadata": {**body["metadata"], **own}}
        self._send(201, self.api.store.write((*where, name), value, "ADDED"))

    def _patch(
        self, key: tuple[str, str, str, str], found: Object, part: str | None, change: Object
    ) -> None:
        if self.headers.get("Content-Type") != "application/merge-patch+json":
            self._fail(415, f"expected a merge patch, not {self.headers.get('Content-Type')}")
            return
        if part == "status":
            change = {"status": change.get("status", {})}
        else:
            change = {name: value for name, value in change.items() if name != "status"}
        self._send(200, self.api.store.write(key, merged(found, change), "MODIFIED"))

    def _delete(self, key: tuple[str, str, str, str], value: Object) -> None:
        self.api.store.write(key, value, "DELETED")
        uid = value["metadata"]["uid"]
        for other, owned in list(self.api.store.objects.items()):
            owners = owned["metadata"].get("ownerReferences", [])
            if any(owner["uid"] == uid for owner in owners):
                self._delete(other, owned)

    def _list(self, where: tuple[str, str, str], query: dict[str, str]) -> None:
        with self.api.store.changed:
            items = [value for _, value in self._matching(where, query)]
            version = str(self.api.store.version)
        items = items[: int(query.get("limit", len(items)))]
        self._send(200, {"kind": "List", "metadata": {"resourceVersion": version}, "items": items})

    def _watch(self, where: tuple[str, str, str], query: dict[str, str]) -> None:
        store, seen = self.api.store, int(query.get("resourceVersion") or 0)
        limit = time.monotonic() + int(query.get("timeoutSeconds") or 30)
        left = self.api.watch_events
        self._begin_chunks("application/json")
        if seen < store.oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            self._chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            self._end_chunks()
            return
        while not self.api.closing and time.monotonic() < limit:
            with store.changed:
                news = [change for change in store.history if change[0] > seen]
                if not news:
                    store.changed.wait(0.1)
                    continue
            for version, event, key, value in news:
                seen = version
                if key[:3] != where or not selected(value, query):
                    continue
                if left == 0:
                    self._cut()
                    return
                left -= 1
                line = json.dumps({"type": event, "object": value})
                self._chunk(line.encode() + b"\n")
        self._end_chunks()

    def _log(self, pod: str, query: dict[str, str]) -> None:
        allowed = self.api.log_bytes.popleft() if self.api.log_bytes else 1 << 30
        since = time.time() - float(query["sinceSeconds"]) if "sinceSeconds" in query else 0.0
        follow = query.get("follow") in {"true", "True"}
        self._begin_chunks("text/plain")
        sent = 0
        while True:
            with self.api.store.changed:
                lines = self.api.logs.get(pod, [])
                news, sent = lines[sent:], len(lines)
                ended = self._phase_of(pod) in {"Succeeded", "Failed", None}
                if not news and follow and not ended and not self.api.closing:
                    self.api.store.changed.wait(0.1)
                    continue
            for stamp, text in news:
                if datetime.fromisoformat(stamp[:26] + "+00:00").timestamp() < since:
                    continue
                line = f"{stamp} {text}\n".encode()
                if len(line) > allowed:
                    self._chunk(line[:allowed]) if allowed else None
                    self._cut()
                    return
                allowed -= len(line)
                self._chunk(line)
            if not follow or ended or self.api.closing:
                self._end_chunks()
                return

    def _phase_of(self, pod: str) -> str | None:
        for (_, plural, _, name), value in self.api.store.objects.items():
            if (plural, name) == ("pods", pod):
                return str(value.get("status", {}).get("phase", "Pending"))
        return None

    def _matching(
        self, where: tuple[str, str, str], query: dict[str, str]
    ) -> list[tuple[tuple[str, str, str, str], Object]]:
        objects = self.api.store.objects.items()
        return [one for one in objects if one[0][:3] == where and selected(one[1], query)]

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
