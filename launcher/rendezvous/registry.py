"""The leader's list of the workers: who has joined, on which address, and who is missing."""

import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Self

from launcher.errors import LauncherError, UsageError
from launcher.rendezvous.wire import JoinReply, JoinRequest, WireError, receive_request, send

_FRESH_SECONDS = 4.0  # workers send a request every second
_RESULT_SECONDS = 15.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Worker:
    """A container that has joined, its address, and the monotonic time of its last request."""

    index: int
    id: str
    address: str
    port: int
    last_seen: float


class Registry:
    """Listens on `port` while open and gives each worker an index, the requested one if possible.

    With an `address` it listens there only.
    """

    def __init__(self, job: str, workers: int, slots: int, port: int, address: str = "") -> None:
        self._job, self._slots = job, slots
        self._workers: dict[int, Worker | None] = dict.fromkeys(range(1, workers + 1))
        self._refused: dict[str, str] = {}
        self._result: int | None = None
        self._informed: set[int] = set()
        self._lock = threading.Lock()
        try:
            self._server = _Server((address, port), _handler(self))
        except OSError as error:
            raise UsageError(f"container.port: {port} cannot be used ({error.strerror})") from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def register(self, request: JoinRequest, address: str) -> JoinReply:
        """Records that a worker has joined, and returns the reply to it."""
        with self._lock:
            now = time.monotonic()
            refusal = self._refusal(request)
            index = None if refusal else self._assign_index(request, now)
            if index is None:
                refusal = refusal or f"all {len(self._workers)} workers of this job have joined"
                self._refused[address] = refusal
                return JoinReply(refused=refusal)
            self._workers[index] = Worker(index, request.id, address, request.port, now)
            if self._result is not None:
                self._informed.add(index)
            return JoinReply(index=index, result=self._result)

    def wait(self, seconds: float, stopped: Callable[[], bool] = lambda: False) -> list[Worker]:
        """All workers in order, once each has sent a request within the last seconds.

        Raises LauncherError naming the missing workers, or at once when `stopped`.
        """
        limit = time.monotonic() + seconds
        while True:
            with self._lock:
                fresh = time.monotonic() - _FRESH_SECONDS
                here = [one for one in self._workers.values() if one and one.last_seen > fresh]
                if len(here) == len(self._workers):
                    return here
            if stopped():
                raise LauncherError("stopped while waiting for workers to join")
            if time.monotonic() > limit:
                raise LauncherError(self._missing(here, seconds))
            time.sleep(_POLL_SECONDS)

    def finish(self, result: int) -> None:
        """Sends the job's exit code to every worker that still sends requests."""
        with self._lock:
            self._result = result
        limit = time.monotonic() + _RESULT_SECONDS
        while self._anyone_uninformed() and time.monotonic() < limit:
            time.sleep(_POLL_SECONDS)

    def _anyone_uninformed(self) -> bool:
        with self._lock:
            lately = time.monotonic() - 2 * _FRESH_SECONDS
            here = {one.index for one in self._workers.values() if one and one.last_seen > lately}
            return bool(here - self._informed)

    def _refusal(self, request: JoinRequest) -> str | None:
        if request.job != self._job:
            return f"this is job {self._job!r}, not {request.job!r}"
        if request.slots != self._slots:
            return f"expected {self._slots} ranks per container. Received: {request.slots}"
        if request.index is not None and request.index not in self._workers:
            return f"expected a worker from 1 to {len(self._workers)}. Received: {request.index}"
        return None

    def _assign_index(self, request: JoinRequest, now: float) -> int | None:
        if request.index is not None:
            return request.index
        for index, worker in self._workers.items():
            if worker is not None and worker.id == request.id:
                return index
        for index, worker in self._workers.items():
            if worker is None or now - worker.last_seen > _FRESH_SECONDS:
                return index
        return None

    def _missing(self, here: list[Worker], seconds: float) -> str:
        known = {worker.index for worker in here}
        names = []
        for index, worker in self._workers.items():
            if index not in known:
                names.append(f"{index} ({worker.id})" if worker else str(index))
        few = ", ".join(names[:8]) + (" and more" if len(names) > 8 else "")
        text = f"worker {few} has not joined within {seconds:g} s"
        if self._refused:
            address, why = next(reversed(self._refused.items()))
            text += f"; {address} was rejected: {why}"
        return text


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def _handler(registry: Registry) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                reply = registry.register(receive_request(self.request), self.client_address[0])
                send(self.request, asdict(reply))
            except (OSError, WireError):
                self.request.close()  # a worker retries; anything else is another program

    return Handler
