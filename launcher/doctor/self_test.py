"""Runs two ranks under the launcher, with one all-reduce between them."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launcher.doctor.finding import Finding
from launcher.placement.backends import choose_backend
from launcher.runs.events import Event
from launcher.runs.writer import RunWriter
from launcher.spec import build_spec
from launcher.supervision.stop import StopRequests
from launcher.supervision.supervisor import Supervisor
from launcher.targets.local import LocalJob

_RANKS = 2
_HANG_SECONDS = 60.0


def check_all_reduce() -> Iterator[Finding]:
    """An all-reduce of two ranks over the backend a job would get, and its median latency."""
    backend, _ = choose_backend(_RANKS)
    if backend == "local":
        fix = "python -m launcher install-horovod"
        yield Finding("self-test", "broken", "no backend for two ranks is installed", fix)
        return
    with tempfile.TemporaryDirectory(prefix="launcher-doctor-") as directory:
        spec = build_spec(
            {
                "name": "doctor",
                "command": [sys.executable, "-m", "launcher.doctor.all_reduce", backend],
                "ranks": _RANKS,
                "backend": backend,
                "environment": {"TF_CPP_MIN_LOG_LEVEL": "3", **_module_path()},
                "restart": {"max_restarts": 0},
                "hang_timeout": _HANG_SECONDS,
                "output": directory,
            }
        )
        lines: list[str] = []

        def collect(event: Event) -> None:
            if event.kind == "output" and event.details["stream"] == "stdout":
                lines.append(event.details["text"])

        record = RunWriter.create(spec)
        stop = StopRequests()
        try:
            result = Supervisor(LocalJob(spec), record, [collect]).run(stop)
        finally:
            record.close()
            stop.close()
    if result.cause is not None:
        last = result.cause.tail[-1] if result.cause.tail else ""
        text = f"two ranks over {backend}: {result.cause.kind}, {result.cause.summary}: {last}"
        yield Finding("self-test", "broken", text, "python -m launcher install-horovod --force")
        return
    answer = json.loads(next(line for line in lines if line.startswith("{")))
    latency = f"an all-reduce of 513 numbers in {answer['milliseconds']} ms"
    yield Finding("self-test", "ok", f"two ranks over {backend}: {latency}")


def _module_path() -> dict[str, str]:
    import launcher

    modules = [str(Path(launcher.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, modules))}
