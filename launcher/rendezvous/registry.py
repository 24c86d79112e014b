"""The leader's list of the workers: who has joined, on which address, and who is missing."""

import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Self

from launcher.errors import LauncherError, UsageError
from launcher.rendezvous.wire import Answer, Arrival, WireError, arrival_from, send

_FRESH_SECONDS = 4.0  # workers come back every second
_TOLD_SECONDS = 15.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Worker:
    """A container that has come, the address it came from, and when it was heard of last."""

    index: int
    id: str
    address: str
    port: int
    heard: float


class Registry:
    """Listens on `port` while open and gives each worker an index, the requested one if possible.

    With an `address` it listens there only.
    """

    def __init__(self, job: str, workers: int, slots: int, port: int, address: str = "") -> None:
        self._job, self._slots = job, slots
        self._places: dict[int, Worker | None] = dict.fromkeys(range(1, workers + 1))
        self._refused: dict[str, str] = {}
        self._result: int | None = None
        self._told: set[int] = set()
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

    def arrive(self, arrival: Arrival, address: str) -> Answer:
        """Records that a worker is here, and answers it."""
        with self._lock:
            now = time.monotonic()
            refusal = self._refusal(arrival)
            index = None if refusal else self._place(arrival, now)
            if index is None:
                refusal = refusal or f"all {len(self._places)} workers of this job are here"
                self._refused[address] = refusal
                return Answer(refused=refusal)
            self._places[index] = Worker(index, arrival.id, address, arrival.port, now)
            if self._result is not None:
                self._told.add(index)
            return Answer(index=index, result=self._result)

    def wait(self, seconds: float, stopped: Callable[[], bool] = lambda: False) -> list[Worker]:
        """All workers in order, each of which has reported within the last seconds.

        Raises LauncherError naming the missing, or at once when `stopped`.
        """
        limit = time.monotonic() + seconds
        while True:
            with self._lock:
                fresh = time.monotonic() - _FRESH_SECONDS
                here = [one for one in self._places.values() if one and one.heard > fresh]
                if len(here) == len(self._places):
                    return here
            if stopped():
                raise LauncherError("told to stop while workers were still to come")
            if time.monotonic() > limit:
                raise LauncherError(self._missing(here, seconds))
            time.sleep(_LOOK_SECONDS)

    def finish(self, result: int) -> None:
        """Tells every worker that still asks how the job ended."""
        with self._lock:
            self._result = result
        limit = time.monotonic() + _TOLD_SECONDS
        while self._untold() and time.monotonic() < limit:
            time.sleep(_LOOK_SECONDS)

    def _untold(self) -> bool:
        with self._lock:
            lately = time.monotonic() - 2 * _FRESH_SECONDS
            here = {one.index for one in self._places.values() if one and one.heard > lately}
            return bool(here - self._told)

    def _refusal(self, arrival: Arrival) -> str | None:
        if arrival.job != self._job:
            return f"this is job {self._job!r}, not {arrival.job!r}"
        if arrival.slots != self._slots:
            return f"expected {self._slots} ranks per container. Received: {arrival.slots}"
        if arrival.index is not None and arrival.index not in self._places:
            return f"expected a worker from 1 to {len(self._places)}. Received: {arrival.index}"
        return None

    def _place(self, arrival: Arrival, now: float) -> int | None:
        if arrival.index is not None:
            return arrival.index
        for index, worker in self._places.items():
            if worker is not None and worker.id == arrival.id:
                return index
        for index, worker in self._places.items():
            if worker is None or now - worker.heard > _FRESH_SECONDS:
                return index
        return None

    def _missing(self, here: list[Worker], seconds: float) -> str:
        known = {worker.index for worker in here}
        names = []
        for index, worker in self._places.items():
            if index not in known:
                names.append(f"{index} ({worker.id})" if worker else str(index))
        few = ", ".join(names[:8]) + (" and more" if len(names) > 8 else "")
        text = f"worker {few} has not come within {seconds:g} s"
        if self._refused:
            address, why = next(reversed(self._refused.items()))
            text += f"; {address} was turned away: {why}"
        return text


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def _handler(registry: Registry) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                answer = registry.arrive(arrival_from(self.request), self.client_address[0])
                send(self.request, asdict(answer))
            except (OSError, WireError):
                self.request.close()  # it will ask again, or belongs to another program

    return Handler
