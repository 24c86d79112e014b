"""The program of each rank of a benchmark: executes the commands of the conductor.

`python -m benchmarks.harness.rank MODULE`, where MODULE has a class `Service`.
"""

import importlib
import json
import os
import socket
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncbn.communicators import Communicator

ADDRESS, JOB, BACKEND = "BENCHMARK_ADDRESS", "BENCHMARK_JOB", "BENCHMARK_BACKEND"

Step = Callable[[], Any]


class Service:
    """Executes commands; each method is one.

    Attributes:
        backend: `"mpi"`, `"tf"`, `"horovod"`, `"local"`, or `"horovod-defaults"`: Horovod with its
            default settings.
        communicator: The communicator of the job.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.communicator = _join(backend)


class TimingService(Service, ABC):
    """Prepares and times steps; subclasses define them."""

    def __init__(self, backend: str) -> None:
        super().__init__(backend)
        self._steps: dict[str, Step] = {}

    @abstractmethod
    def make(self, contender: str, case: dict[str, Any]) -> Step:
        """The step of a contender, which returns when its work has ended."""

    def prepare(self, key: str, contender: str, case: dict[str, Any]) -> None:
        """Creates the step and runs it twice, first to trace it."""
        self._steps[key] = self.make(contender, case)
        for _ in range(2):
            self._steps[key]()

    def run(self, key: str, steps: int) -> list[float]:
        """Seconds of each of `steps` steps, after one that synchronizes the ranks."""
        step = self._steps[key]
        step()
        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        return seconds

    def forget(self, key: str) -> None:
        """Frees the memory of the step."""
        del self._steps[key]


def _join(backend: str) -> "Communicator":
    if backend == "horovod-defaults":
        from syncbn.communicators.horovod import HorovodCommunicator, import_horovod

        import_horovod().init()
        return HorovodCommunicator()
    import syncbn

    return syncbn.init(backend)


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    host, port = os.environ[ADDRESS].rsplit(":", 1)
    with socket.create_connection((host, int(port))) as connection:
        stream = connection.makefile("rw")

        def answer(content: dict[str, Any]) -> None:
            stream.write(json.dumps(content) + "\n")
            stream.flush()

        answer({"job": os.environ[JOB], "process": os.getpid()})
        service: Any = None
        for line in stream:
            order = json.loads(line)
            try:
                if order["call"] == "end":
                    answer({"value": None})
                    return
                service = service or module.Service(os.environ[BACKEND])
                answer({"value": getattr(service, order["call"])(**order["arguments"])})
            except Exception:
                answer({"error": traceback.format_exc()})


if __name__ == "__main__":
    main()
