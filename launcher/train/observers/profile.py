"""`--profile-steps A:B`: TensorFlow's profile of each rank, and one trace of all collectives.

OUTPUT/profile/trace.json opens in chrome://tracing and https://ui.perfetto.dev. Each rank is shown
as a process, with a row for its steps and for each kind of all-reduce. The directories rank-N next
to it hold TensorFlow's profiles.
"""

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from launcher.atomic import replace_json
from launcher.train.coordination import gather_json
from launcher.train.observers.base import Observer, RunStarted, StepDone, warn
from launcher.train.observers.step_timing import StepTiming
from syncbn.communicators import Communicator
from syncbn.telemetry import Span

_ROWS = ("step", "sync_batch_norm", "gradients", "other")
_ROW_NAMES = {"sync_batch_norm": "SyncBN all-reduce", "gradients": "gradient all-reduce"}

# The host of a rank, and [row, name, start, seconds, bytes] of each event.
RankEvents = dict[str, Any]


class Profile(Observer):
    """Records steps `first` to `last`, inclusive, counted from 1 over the whole run."""

    what = "the profile"
    # The ranks gather their events: a missing rank would block the others.
    essential = True

    def __init__(
        self, first: int, last: int, output: Path, communicator: Communicator, timing: StepTiming
    ) -> None:
        self._first, self._last = first, last
        self._directory = output / "profile"
        self._communicator = communicator
        self._timing = timing
        self._events: list[list[Any]] = []
        self._recording = self._profiling = False

    def on_start(self, run: RunStarted) -> None:
        if self._first <= run.step + 1 <= self._last:
            self._begin()

    def on_step(self, step: StepDone) -> None:
        if step.step == self._first - 1:
            self._begin()
        elif self._recording and step.step == self._last:
            self._finish()

    def on_end(self, summary: dict[str, Any]) -> None:
        if self._recording:
            self._finish()

    def _begin(self) -> None:
        self._recording = True
        self._timing.on_spans = self._record
        try:
            options = tf.profiler.experimental.ProfilerOptions(python_tracer_level=0)
            directory = self._directory / f"rank-{self._communicator.rank}"
            tf.profiler.experimental.start(str(directory), options)
            self._profiling = True
        except (tf.errors.OpError, OSError) as error:
            warn(f"TensorFlow's profiler cannot start: {error}")

    def _record(self, step: StepDone, spans: Sequence[Span], ended: float) -> None:
        began = ended - step.seconds
        self._events.append(["step", f"step {step.step}", began, step.seconds, 0])
        if step.input_seconds > 0:
            self._events.append(["step", "input wait", began, step.input_seconds, 0])
        self._events += [
            [span.kind, span.name, span.start, span.seconds, span.bytes] for span in spans
        ]

    def _finish(self) -> None:
        self._recording = False
        self._timing.on_spans = None
        if self._profiling:
            try:
                tf.profiler.experimental.stop()
            except (tf.errors.OpError, OSError) as error:
                warn(f"TensorFlow's profile is lost: {error}")
                shutil.rmtree(
                    self._directory / f"rank-{self._communicator.rank}", ignore_errors=True
                )
        everything = gather_json(
            {"host": socket.gethostname(), "events": self._events}, self._communicator
        )
        if self._communicator.rank == 0:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                replace_json(self._directory / "trace.json", chrome_trace(everything), indent=None)
            except OSError as error:
                warn(f"the trace cannot be written: {error}")


def chrome_trace(ranks: Sequence[RankEvents]) -> dict[str, Any]:
    """The events of all ranks on one timeline, in the Trace Event Format.

    Clocks of other hosts are aligned with that of rank 0 by the ends of the gradient all-reduces,
    which all ranks leave at the same time.
    """
    offsets = [_clock_offset(ranks[0], seen) for seen in ranks]
    starts = [
        e[2] - offset for seen, offset in zip(ranks, offsets, strict=True) for e in seen["events"]
    ]
    origin = min(starts, default=0.0)
    events: list[dict[str, Any]] = []
    for rank, (seen, offset) in enumerate(zip(ranks, offsets, strict=True)):
        name = {"name": f"rank {rank} on {seen['host']}"}
        events.append({"ph": "M", "name": "process_name", "pid": rank, "args": name})
        for row, kind in enumerate(_ROWS):
            label = {"name": _ROW_NAMES.get(kind, kind)}
            events.append(
                {"ph": "M", "name": "thread_name", "pid": rank, "tid": row, "args": label}
            )
        for kind, what, start, seconds, size in seen["events"]:
            event = {
                "ph": "X",
                "name": what,
                "cat": kind,
                "pid": rank,
                "tid": _ROWS.index(kind),
                "ts": round((start - offset - origin) * 1e6, 1),
                "dur": round(seconds * 1e6, 1),
            }
            events.append(event | ({"args": {"bytes": size}} if size else {}))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _clock_offset(first: RankEvents, other: RankEvents) -> float:
    """How far the clock of the other rank is ahead, in seconds; 0 on the same host."""
    if first["host"] == other["host"]:
        return 0.0
    ends = [
        [event[2] + event[3] for event in seen["events"] if event[0] == "gradients"]
        for seen in (first, other)
    ]
    differences = [theirs - ours for ours, theirs in zip(*ends, strict=False)]
    return float(np.median(differences)) if differences else 0.0


def parse_range(text: str) -> tuple[int, int]:
    """Converts `10:20`, which the configuration has validated, to (10, 20)."""
    first, _, last = text.partition(":")
    return int(first), int(last)
