"""python -m tests.soak    # `make soak`: minutes of training on each backend, nothing may grow"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.processes import REPOSITORY, python_path
from tests.soak.measure import COUNTS, Look, growth, look
from tests.soak.options import BACKENDS, options

OUTPUT = REPOSITORY / "build" / "soak"
_LOOKS = 60
_FEWEST_SECONDS = 1.0
_STOP_SECONDS = 90.0


def main() -> int:
    asked = options().parse_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    failed = False
    for backend in asked.backend or BACKENDS:
        looks, code = soak(backend, 60.0 * asked.minutes, asked.ranks)
        (OUTPUT / f"{backend}.json").write_text(json.dumps([vars(one) for one in looks], indent=1))
        found = growth(looks) if len(looks) >= 10 else ["nothing: it ended too early"]
        if code != 128 + signal.SIGTERM:
            found.append(f"exit code {code}")
        failed |= bool(found)
        print(f"{backend}: {_summary(looks)}", flush=True)
        for line in found:
            print(f"{backend}: GREW {line}", flush=True)
    return int(failed)


def soak(backend: str, seconds: float, ranks: int) -> tuple[list[Look], int]:
    """Trains so long after the first checkpoint; the looks at it, and how the launcher ended."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder, temporary, saves = (Path(name) / part for part in ("job", "tmp", "saves"))
        for directory in (folder, temporary, saves):
            directory.mkdir()
        environment = {
            **os.environ,
            "TMPDIR": str(temporary),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_NUM_INTRAOP_THREADS": "1",
            "PYTHONPATH": python_path(REPOSITORY),
        }
        command = [sys.executable, "-m", "launcher", "run", "-np", str(ranks), "--backend", backend]
        command += ["--output", str(folder), "--quiet", "--"]
        command += [sys.executable, "-m", "tests.soak.program", "20", str(saves)]
        with (OUTPUT / f"{backend}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            looks = _watch(psutil.Process(process.pid), Path(name), temporary, saves, seconds)
            process.send_signal(signal.SIGTERM)
            return looks, process.wait(_STOP_SECONDS)
        finally:
            process.kill()
            process.wait()


def _watch(
    launcher: psutil.Process, folder: Path, temporary: Path, saves: Path, seconds: float
) -> list[Look]:
    while launcher.status() != psutil.STATUS_ZOMBIE and not any(saves.iterdir()):
        time.sleep(_FEWEST_SECONDS)
    began = time.monotonic()
    looks = []
    while (passed := time.monotonic() - began) < seconds:
        if launcher.status() == psutil.STATUS_ZOMBIE:
            break
        looks.append(look(launcher, folder, temporary, passed))
        time.sleep(max(_FEWEST_SECONDS, seconds / _LOOKS))
    return looks


def _summary(looks: list[Look]) -> str:
    if not looks:
        return "no look"
    first, last = looks[0], looks[-1]
    counts = [f"{name} {getattr(first, name)} to {getattr(last, name)}" for name in COUNTS]
    memory = f"memory {first.memory / 1e6:.1f} to {last.memory / 1e6:.1f} MB"
    return f"{last.seconds / 60:.1f} minutes, {', '.join([memory, *counts])}"


if __name__ == "__main__":
    sys.exit(main())
