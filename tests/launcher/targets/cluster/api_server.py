"""A small API server over real HTTP: lists, watches, patches, logs and errors as in Kubernetes.

It keeps objects and history and runs no controllers: the tests play those, over the same API.
"""

import threading
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer

from tests.launcher.targets.cluster.api_objects import Store
from tests.launcher.targets.cluster.api_verbs import LAUNCHER_TOKEN, TOKEN, Verbs

__all__ = ["KINDS", "LAUNCHER_TOKEN", "TOKEN", "ApiServer", "Fault"]

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
    """An answer to send instead of the normal one, to requests of a method on a path."""

    status: int
    method: str = ""
    path: str = ""
    message: str = "not now"
    headers: tuple[tuple[str, str], ...] = ()


class ApiServer:
    """Serves on a free port of loopback while open. `kinds` are those it supports."""

    def __init__(self) -> None:
        self.store = Store()
        self.kinds = set(KINDS)
        self.logs: dict[str, list[tuple[str, str]]] = {}
        self.faults: deque[Fault] = deque()
        self.requests: list[tuple[str, str]] = []
        self.forbidden = ""
        self.watch_events = 1_000_000  # a watch is cut after so many
        self.log_bytes: deque[int] = deque()  # the next logs are cut after so many bytes
        handler = type("Handler", (Verbs,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
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
        """Discards older versions: watches from them are 410 Gone."""
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
