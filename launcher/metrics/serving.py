"""Serves the metrics of a job while the launcher runs it, and pushes them at the end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launcher.metrics.job import JobPage
from launcher.metrics.push import push
from launcher.metrics.server import MetricsServer, record_address
from launcher.runs.events import Observer
from launcher.runs.layout import metrics_address
from launcher.spec import JobSpec


@contextmanager
def job_metrics(spec: JobSpec, run: Path) -> Iterator[list[Observer]]:
    """The observers that update the metrics of a run; none unless the job has metrics.

    A failure is one line on stderr and does not affect the job.
    """
    metrics = spec.metrics
    if metrics is None or (metrics.port is None and metrics.push is None):
        yield []
        return
    page = JobPage(spec.ranks, run, metrics.rank_labels)
    target = metrics_address(run)
    server = None
    if metrics.port is not None:
        server = _serve(page, metrics.address, metrics.port, target)
    try:
        yield [page]
    finally:
        if metrics.push is not None:
            problem = push(page.registry, metrics.push, run.name, "launcher")
            if problem:
                _warn(problem)
        if server is not None:
            server.close()
            with suppress(OSError):
                target.unlink()


def _serve(page: JobPage, host: str, port: int, target: Path) -> MetricsServer | None:
    """Serves the page and writes the address to `target`, for Prometheus' file_sd_configs."""
    try:
        server = MetricsServer(page.text, host, port)
    except (OSError, OverflowError) as error:
        _warn(
            f"metrics are not served on {host}:{port}: {getattr(error, 'strerror', error)}. "
            "Choose another --metrics-port, or 0 for a free one"
        )
        return None
    try:
        record_address(target, server, {"run": target.stem})
    except OSError as error:
        _warn(f"the address of the metrics ({server.address}) cannot be recorded: {error}")
    return server


def _warn(text: str) -> None:
    print(f"launcher: {text}; the job continues", file=sys.stderr, flush=True)
