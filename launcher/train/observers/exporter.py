"""Exports the metrics page of this rank: over HTTP, as snapshots for the launcher, by push."""

import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from launcher.metrics import RANK_METRICS, Metric, Page
from launcher.metrics import definitions as m
from launcher.metrics.push import push
from launcher.metrics.server import MetricsServer, record_address
from launcher.metrics.snapshots import write_snapshot
from launcher.runs.layout import snapshot_path
from launcher.train.environment import launcher_attempt, launcher_run, local_rank
from launcher.train.observers.base import Observer, RunStarted, StepDone, warn
from launcher.version import versions
from syncbn.communicators import Communicator

_SECONDS_BETWEEN_SNAPSHOTS = 2.0


class Exporter(Observer):
    """Serves the page as soon as it is created, so that a rank that waits for others is visible.

    Args:
        port: The local rank is added to it; 0 for a free port, which OUTPUT/metrics/targets then
            names; None for the launcher's choice, or not to serve.
        host: The address to serve on.
        gateway: A Pushgateway (HOST:PORT) to push to at the end; None for the launcher's choice.
    """

    what = "exporting metrics"

    def __init__(self, port: int | None, host: str, gateway: str | None) -> None:
        self.page = Page(RANK_METRICS)
        self._waiting: str | None = "has not joined the job yet"
        self._ended = threading.Event()
        self._snapshots: threading.Thread | None = None
        self._run = self._instance = ""
        self._gateway = gateway or os.environ.get("LAUNCHER_METRICS_PUSH")
        self._server = self._serve(port, host)
        memory = psutil.Process().memory_info
        self.page[m.RESIDENT_MEMORY].set_function(lambda: memory().rss)
        self.page[m.BUILD_INFO].labels(**versions()).set(1)

    def joined(
        self,
        communicator: Communicator,
        output: Path,
        seconds: float,
        names: Mapping[str, str],
    ) -> None:
        """Called when the rank has joined the job.

        Args:
            communicator: The ranks.
            output: The output directory of the run.
            seconds: How long joining took.
            names: The labels `model`, `dataset` and `norm` of the run.
        """
        self._waiting = "has not finished a step yet"
        self._run = output.resolve().name
        self._instance = f"{socket.gethostname()}:rank-{communicator.rank}"
        self.page[m.RENDEZVOUS_DURATION].set(seconds)
        self.page[m.WORLD_SIZE].set(communicator.size)
        self.page[m.TRAINING_INFO].labels(
            run=self._run,
            page="rank",
            rank=str(communicator.rank),
            host=socket.gethostname(),
            backend=communicator.name,
            **names,
        ).set(1)
        for gauge, read in gpu_gauges(communicator.local_rank).items():
            self.page[gauge].set_function(read)
        if self._server is not None:
            path = output / "metrics" / "targets" / f"rank-{communicator.rank}.json"
            labels = {"run": self._run, "rank": str(communicator.rank)}
            _try(lambda: record_address(path, self._server, labels))  # type: ignore[arg-type]
        run = launcher_run()
        if run is not None:
            self._start_snapshots(snapshot_path(run, launcher_attempt(), communicator.rank))

    def on_start(self, run: RunStarted) -> None:
        self._waiting = "has not finished a step yet"

    def on_step(self, step: StepDone) -> None:
        self._waiting = None

    def on_end(self, summary: dict[str, Any]) -> None:
        self._ended.set()
        if self._snapshots is not None:
            self._snapshots.join(5)
        if self._gateway:
            problem = push(self.page.registry, self._gateway, self._run, self._instance)
            if problem:
                warn(problem)
        if self._server is not None:
            self._server.close()

    def _serve(self, base: int | None, host: str) -> MetricsServer | None:
        if base is None and os.environ.get("LAUNCHER_METRICS_PORT", "").isdigit():
            base = int(os.environ["LAUNCHER_METRICS_PORT"])
            host = os.environ.get("LAUNCHER_METRICS_HOST", host)
        if base is None:
            return None
        port = base + local_rank() if base else 0
        try:
            return MetricsServer(self.page.text, host, port, lambda: self._waiting)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            warn(
                f"metrics are not served on {host}:{port}: {reason}. "
                "Choose another --metrics-port, or 0 for a free one"
            )
            return None

    def _start_snapshots(self, path: Path) -> None:
        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_snapshot(path, self.page)

        def keep_writing() -> None:
            going = _try(write)
            while going:
                ended = self._ended.wait(_SECONDS_BETWEEN_SNAPSHOTS)
                going = _try(write) and not ended

        self._snapshots = threading.Thread(target=keep_writing, name="snapshots", daemon=True)
        self._snapshots.start()


def _try(action: Callable[[], None]) -> bool:
    """Whether `action` succeeded; a file that cannot be written gives one warning."""
    try:
        action()
    except OSError as error:
        warn(f"metrics cannot be written: {error}")
        return False
    return True


def gpu_gauges(local_rank: int) -> dict[Metric[Any], Callable[[], float]]:
    """A function to read each gauge of the GPU through NVML; empty without one or nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        device = _device(pynvml, local_rank)
    except (pynvml.NVMLError, IndexError):
        return {}
    return {
        m.GPU_MEMORY: lambda: float(pynvml.nvmlDeviceGetMemoryInfo(device).used),
        m.GPU_UTILIZATION: lambda: pynvml.nvmlDeviceGetUtilizationRates(device).gpu / 100,
    }


def _device(pynvml: Any, local_rank: int) -> Any:
    """The device that syncbn.init pins: the visible device at the index of the local rank."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return pynvml.nvmlDeviceGetHandleByIndex(local_rank)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    name = names[local_rank % max(1, len(names))]
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)
