"""This rank's page on its way out: over HTTP, into snapshots for the launcher, to a Pushgateway."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from launcher.metrics import RANK_METRICS, Page
from launcher.metrics import definitions as m
from launcher.metrics.push import push
from launcher.metrics.server import MetricsServer, record_address
from launcher.metrics.snapshots import write_snapshot
from launcher.runs.layout import snapshot_path
from launcher.train.config import TrainConfig
from launcher.train.observers.base import Observer, RunStarted, StepDone, warn
from launcher.train.observers.gpu import gpu_gauges
from launcher.version import versions
from syncbn.communicators import Communicator
from syncbn.communicators.environment import cluster_from_tf_config

_SECONDS_BETWEEN_SNAPSHOTS = 2.0


class Exporter(Observer):
    """Serves the page from the moment it is made, so that a rank that waits for others can be seen.

    The port is the base plus the local rank; base 0 takes a free one, which OUTPUT/metrics/targets
    then names.
    """

    what = "exporting metrics"

    def __init__(self, config: TrainConfig) -> None:
        self.page = Page(RANK_METRICS)
        self._config = config
        self._waiting: str | None = "has not joined the job yet"
        self._ended = threading.Event()
        self._snapshots: threading.Thread | None = None
        self._run = self._instance = ""
        self._gateway = config.metrics_push or os.environ.get("LAUNCHER_METRICS_PUSH")
        self._server = self._serve()
        memory = psutil.Process().memory_info
        self.page[m.RESIDENT_MEMORY].set_function(lambda: memory().rss)
        self.page[m.BUILD_INFO].labels(**versions()).set(1)

    def joined(self, communicator: Communicator, output: Path, seconds: float) -> None:
        """Once the rank has found the others, which took `seconds`."""
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
            model=self._config.model,
            dataset=self._config.dataset,
            norm=self._config.norm,
            backend=communicator.name,
        ).set(1)
        for gauge, read in gpu_gauges(communicator.local_rank).items():
            self.page[gauge].set_function(read)
        if self._server is not None:
            path = output / "metrics" / "targets" / f"rank-{communicator.rank}.json"
            labels = {"run": self._run, "rank": str(communicator.rank)}
            _try(lambda: record_address(path, self._server, labels))  # type: ignore[arg-type]
        run = os.environ.get("LAUNCHER_RUN_DIR")
        if run:
            attempt = int(os.environ.get("LAUNCHER_ATTEMPT") or 0)
            self._start_snapshots(snapshot_path(Path(run), attempt, communicator.rank))

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

    def _serve(self) -> MetricsServer | None:
        base, host = self._config.metrics_port, self._config.metrics_host
        if base is None and os.environ.get("LAUNCHER_METRICS_PORT", "").isdigit():
            base = int(os.environ["LAUNCHER_METRICS_PORT"])
            host = os.environ.get("LAUNCHER_METRICS_HOST", host)
        if base is None:
            return None
        port = base + local_rank(os.environ) if base else 0
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


def local_rank(environ: Any) -> int:
    """Index of this process among those of the job on its host, before any engine is up."""
    for name in ("HOROVOD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"):
        if environ.get(name, "").isdigit():
            return int(environ[name])
    if environ.get("TF_CONFIG"):
        addresses, index = cluster_from_tf_config(environ["TF_CONFIG"])
        hosts = [address.rsplit(":", 1)[0] for address in addresses]
        return hosts[:index].count(hosts[index])
    return 0


def _try(action: Callable[[], None]) -> bool:
    """Whether `action` could be done; a file that cannot be written is one warning."""
    try:
        action()
    except OSError as error:
        warn(f"metrics cannot be written: {error}")
        return False
    return True
