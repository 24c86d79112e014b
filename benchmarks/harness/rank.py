"""What each rank of a benchmark runs: it does what the conductor orders, one order at a time.

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

ADDRESS, JOB, ENGINE = "BENCHMARK_ADDRESS", "BENCHMARK_JOB", "BENCHMARK_ENGINE"

Step = Callable[[], Any]


class Service:
    """Answers orders: each of its methods is one.

    Attributes:
        engine: `"mpi"`, `"tf"`, `"horovod"`, `"local"`, or `"horovod-defaults"`: Horovod as it
            comes, without any of our settings.
        ranks: The communicator of the job.
    """

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.ranks = _join(engine)


class TimingService(Service, ABC):
    """Prepares steps by name and times them; a benchmark says what its steps are."""

    def __init__(self, engine: str) -> None:
        super().__init__(engine)
        self._steps: dict[str, Step] = {}

    @abstractmethod
    def make(self, contender: str, case: dict[str, Any]) -> Step:
        """The step of a contender. When it returns, the work is done."""

    def prepare(self, key: str, contender: str, case: dict[str, Any]) -> None:
        """Makes the step and runs it twice: the first traces it."""
        self._steps[key] = self.make(contender, case)
        for _ in range(2):
            self._steps[key]()

    def run(self, key: str, steps: int) -> list[float]:
        """Seconds of each of `steps` steps, after one that only brings the ranks together."""
        step = self._steps[key]
        step()
        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        return seconds

    def forget(self, key: str) -> None:
        """Frees what the step holds."""
        del self._steps[key]


def _join(engine: str) -> "Communicator":
    if engine == "horovod-defaults":
        from syncbn.communicators.horovod import HorovodCommunicator, import_horovod

        import_horovod().init()
        return HorovodCommunicator()
    import syncbn

    return syncbn.init(engine)


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
                service = service or module.Service(os.environ[ENGINE])
                answer({"value": getattr(service, order["call"])(**order["arguments"])})
            except Exception:
                answer({"error": traceback.format_exc()})


if __name__ == "__main__":
    main()
