"""The directory of a run: the only module that knows the names of its files.

    OUTPUT/ID/spec.json         the job
    OUTPUT/ID/launcher.json     the process of its launcher
    OUTPUT/ID/journal.jsonl     its events
    OUTPUT/ID/result.json       how it ended
    OUTPUT/ID/launcher.log      the output of the launcher of a job in the background
    OUTPUT/ID/logs/             of all ranks
    OUTPUT/ID/metrics/          of all ranks
    OUTPUT/ID/metrics.jsonl     the measurements of launcher.train; summary.json beside it
    OUTPUT/ID/report.html       their figures

OUTPUT/targets contains the addresses of the metrics of running jobs, for Prometheus.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

SPEC = "spec.json"
LAUNCHER = "launcher.json"
JOURNAL = "journal.jsonl"
RESULT = "result.json"
LAUNCHER_LOG = "launcher.log"
RESERVE = ".reserve"
TRAINING_EVENTS = "metrics.jsonl"
SUMMARY = "summary.json"
REPORT = "report.html"

_LOGS, _METRICS = "logs", "metrics"


def run_directories(output: Path) -> list[Path]:
    """The directories of all runs, oldest first."""
    found = [path.parent for path in output.absolute().glob(f"*/{SPEC}")]
    return sorted(found, key=lambda path: (path / SPEC).stat().st_mtime)


def logs_directory(run: Path, attempt: int | None = None) -> Path:
    """Of one attempt, or of all."""
    return run / _LOGS if attempt is None else run / _LOGS / f"attempt-{attempt}"


def log_path(run: Path, attempt: int, rank: int | None) -> Path:
    """The log of a rank in an attempt; rank None is that of the transport (ssh, mpirun)."""
    return logs_directory(run, attempt) / ("transport.log" if rank is None else f"rank-{rank}.log")


def logs(run: Path, attempts: Iterable[int], rank: int | None = None) -> Iterator[Path]:
    """The existing logs, of one rank or of all and the transport, by attempt and rank."""
    name = "*.log" if rank is None else f"rank-{rank}.log"
    for attempt in attempts:
        found = logs_directory(run, attempt).glob(name)
        yield from sorted(found, key=lambda path: (len(path.stem), path.stem))  # 10 after 9


def log_label(path: Path) -> str:
    """The rank of the log, or "transport"."""
    return path.stem.removeprefix("rank-")


def snapshot_path(run: Path, attempt: int, rank: int) -> Path:
    """The metrics of one rank in an attempt."""
    return run / _METRICS / f"attempt-{attempt}" / f"rank-{rank}.json"


def snapshots(run: Path) -> Iterator[tuple[int, int, Path]]:
    """Attempt, rank and file of all existing metrics."""
    for path in (run / _METRICS).glob("attempt-*/rank-*.json"):
        attempt = int(path.parent.name.removeprefix("attempt-"))
        yield attempt, int(path.stem.removeprefix("rank-")), path


def metrics_address(run: Path) -> Path:
    """The file with the address of the job's metrics, while they are served."""
    return run.parent / "targets" / f"{run.name}.json"


def report_path(run: Path, beside: Path | None = None) -> Path:
    """The report of a run, or of two runs side by side."""
    return run / (REPORT if beside is None else f"report-with-{beside.name}.html")
