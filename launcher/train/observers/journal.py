"""metrics.jsonl: the events of a run, one JSON object per line, for reports and notebooks.

Every line has `event`, `step` and `time` (seconds since the epoch). `start` begins each attempt;
`step` lines become sparser as the run proceeds; `window`, `epoch`, `layers`, `checkpoint` and `end`
are complete. NaN and infinite numbers are null. Only rank 0 writes; a resumed run appends.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.atomic import replace_text
from launcher.runs.logs import append_whole
from launcher.train.environment import launcher_attempt
from launcher.train.observers.base import (
    EpochDone,
    Observer,
    RunStarted,
    SaveDone,
    StepDone,
    WindowDone,
)
from launcher.train.observers.moving_statistics import Drift

_ALL_STEPS_UNTIL = 1000
_SECONDS_BETWEEN_WRITES = 1.0


class Journal(Observer):
    """Appends to metrics.jsonl.

    Args:
        path: The file.
        about: Further contents of the first line of an attempt: versions, options.
        gradient_norm: Returns the gradient norm of the latest step.
        drift: Returns the drift of the moving statistics by layer since the last call.
    """

    what = "metrics.jsonl"

    def __init__(
        self,
        path: Path,
        about: dict[str, Any],
        gradient_norm: Callable[[], float],
        drift: Callable[[], Drift],
    ) -> None:
        self._path, self._about = path, about
        self._gradient_norm, self._drift = gradient_norm, drift
        self._pending: list[str] = []
        self._written = 0.0

    def on_start(self, run: RunStarted) -> None:
        """Removes the lines after the checkpoint from which the run resumes."""
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if _is_before(line, run)]
            text = "".join(f"{line}\n" for line in kept)
            replace_text(self._path, text, durable=False)
        started = {name: value for name, value in asdict(run).items() if name != "output"}
        self._write("start", {**started, "attempt": launcher_attempt(), **self._about})

    def on_step(self, step: StepDone) -> None:
        if step.step % thinning(step.step) == 0:
            self._write("step", {**vars(step), "gradient_norm": self._gradient_norm()}, soon=False)

    def on_window(self, window: WindowDone) -> None:
        self._write("window", asdict(window))

    def on_saved(self, save: SaveDone) -> None:
        size = save.path.stat().st_size
        content = {"step": save.step, "file": save.path.name}
        self._write("checkpoint", {**content, "seconds": save.seconds, "bytes": size})

    def on_epoch(self, epoch: EpochDone) -> None:
        self._write("epoch", asdict(epoch))
        if drift := self._drift():
            self._write("layers", {"epoch": epoch.epoch, "step": epoch.step, "drift": drift})

    def on_end(self, summary: dict[str, Any]) -> None:
        ended = {name: summary.get(name) for name in ("stopped", "skipped_updates", "failure")}
        self._write("end", {"step": summary["steps"], **ended})

    def _write(self, event: str, content: dict[str, Any], soon: bool = True) -> None:
        content = {"event": event, "time": round(time.time(), 3), **_rounded(content)}
        line = json.dumps(content, allow_nan=False)
        self._pending.append(line)
        now = time.monotonic()
        if soon or now - self._written >= _SECONDS_BETWEEN_WRITES:
            self._written = now
            text = "".join(f"{pending}\n" for pending in self._pending)
            self._pending.clear()
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, 0o644)
            try:
                append_whole(descriptor, text.encode())
            finally:
                os.close(descriptor)


def thinning(step: int) -> int:
    """The interval between recorded steps: 1 at first, doubled each time the run length doubles."""
    return 1 << max(0, (step // _ALL_STEPS_UNTIL).bit_length() - 1)


def _rounded(content: Any) -> Any:
    """Rounds numbers to seven significant digits, the precision of float32."""
    if isinstance(content, float):
        return float(f"{content:.7g}") if math.isfinite(content) else None
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_rounded(value) for value in content]
    return content


def _is_before(line: str, run: RunStarted) -> bool:
    """Whether a line precedes the checkpoint from which the run resumes; not if it is truncated."""
    try:
        content = json.loads(line)
        # At its last step an epoch may be incomplete: its evaluation comes later.
        redone = content.get("event") == "epoch" and content["epoch"] >= run.epoch
        return content["step"] <= run.step and not redone
    except (ValueError, KeyError, TypeError):
        return False
