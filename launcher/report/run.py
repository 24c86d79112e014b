"""Reads the files of a run: metrics.jsonl, summary.json, and the launcher's journal."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from launcher.errors import UsageError
from launcher.metrics.definitions import ALL_REDUCE_KINDS, STEP_PARTS
from launcher.runs import layout
from launcher.runs.reader import read_journal, read_json

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run. Times are in seconds, `time` fields since the epoch.

    Attributes:
        directory: The run's directory.
        lines: metrics.jsonl, oldest first.
        events: The launcher's journal; empty for a run that was started without the launcher.
        summary: summary.json; empty for a run that has not ended.
    """

    directory: Path
    lines: Sequence[Line]
    events: Sequence[Line]
    summary: Line

    @property
    def name(self) -> str:
        return self.directory.name

    def of(self, event: str) -> list[Line]:
        """The lines of one kind."""
        return [line for line in self.lines if line["event"] == event]

    def events_of(self, event: str) -> list[Line]:
        return [line for line in self.events if line["event"] == event]

    @cached_property
    def start(self) -> Line:
        """The first line of the newest attempt; empty if training never started."""
        return (self.of("start") or [{}])[-1]

    @cached_property
    def status(self) -> str:
        """succeeded, stopped, failed, or unfinished (running, or killed before its end)."""
        done = self.events_of("done")
        if done:
            return str(done[-1]["result"])
        if not self.summary:
            return "unfinished"
        if self.summary.get("failure"):
            return "failed"
        return "stopped" if self.summary.get("stopped") else "succeeded"

    @cached_property
    def world_size(self) -> int:
        return int(self.start.get("world_size") or self.summary.get("world_size") or 0)

    @cached_property
    def began(self) -> float:
        times = [line["time"] for line in (*self.events[:1], *self.lines[:1])]
        return min(times, default=0.0)

    @cached_property
    def ended(self) -> float:
        return max((line["time"] for line in (*self.events, *self.lines)), default=0.0)

    @cached_property
    def windows(self) -> list[Line]:
        """The windows with as many ranks as the newest attempt, so that they can be added up."""
        return [w for w in self.of("window") if len(w["ranks"]["seconds"]) == self.world_size]

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Part of a step to seconds per step, (windows, ranks)."""
        steps = np.array([window["steps"] for window in self.windows])[:, None]
        return {
            part: np.array([window["ranks"][part] for window in self.windows]) / steps
            for part in STEP_PARTS
            if self.windows
        }

    @cached_property
    def held_out(self) -> tuple[float | None, float | None]:
        """Accuracy and loss on held-out data, from the summary or else the last epoch."""
        epochs = [e for e in self.of("epoch") if e.get("validation_loss") is not None]
        last = epochs[-1] if epochs else {}
        accuracy = self.summary.get("accuracy", last.get("validation_accuracy"))
        return accuracy, self.summary.get("loss", last.get("validation_loss"))

    @cached_property
    def rate(self) -> float | None:
        """Examples per second over all ranks, from the summary or else the windows."""
        if "images_per_second" in self.summary:
            return float(self.summary["images_per_second"])
        seconds = sum(max(window["ranks"]["seconds"]) for window in self.windows)
        rows = sum(sum(window["ranks"]["rows"]) for window in self.windows)
        return rows / seconds if seconds else None

    @cached_property
    def own_seconds(self) -> np.ndarray:
        """Seconds per step of compute and input on each rank, over the whole run."""
        steps = sum(window["steps"] for window in self.windows)
        own = [
            np.add(window["ranks"]["compute"], window["ranks"]["input_wait"])
            for window in self.windows
        ]
        return np.sum(own, axis=0) / steps if steps else np.zeros(self.world_size)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Part of a step to its share of the time, 0 to 1, averaged over ranks."""
        totals = {
            part: float(sum(np.mean(window["ranks"][part]) for window in self.windows))
            for part in STEP_PARTS
        }
        whole = sum(totals.values())
        return {part: seconds / whole if whole else 0.0 for part, seconds in totals.items()}

    @cached_property
    def step_seconds(self) -> np.ndarray:
        """Durations of the recorded steps, without the first of each attempt, which compiles."""
        first = {line["step"] + 1 for line in self.of("start")}
        return np.array([s["seconds"] for s in self.of("step") if s["step"] not in first])

    def all_reduces(self, kind: str) -> np.ndarray:
        """The number of all-reduces in each of ALL_REDUCE_BUCKETS and above."""
        counts = [window["all_reduces"][kind] for window in self.of("window")]
        return np.sum(counts, axis=0) if counts else np.zeros(0)

    def per_step(self, kind: str) -> tuple[float, float]:
        """All-reduces and bytes of a kind, per step and rank."""
        steps = sum(window["steps"] for window in self.windows) * max(1, self.world_size)
        count = sum(sum(window["all_reduces"][kind]) for window in self.windows)
        size = sum(window["bytes"][kind] for window in self.windows)
        return (count / steps, size / steps) if steps else (0.0, 0.0)

    @property
    def kinds(self) -> list[str]:
        """The kinds of all-reduce that occurred."""
        return [kind for kind in ALL_REDUCE_KINDS if self.all_reduces(kind).sum()]


def read_run(directory: Path) -> Run:
    """Reads the existing files. Raises UsageError if the directory is not a run."""
    lines = list(_read_lines(directory / layout.TRAINING_EVENTS))
    events = list(read_journal(directory))
    if not lines and not events:
        raise UsageError(
            f"{directory} is not a run: expected {layout.TRAINING_EVENTS} or {layout.JOURNAL} in "
            "it. `launcher list` lists the runs in runs/"
        )
    return Run(directory.resolve(), lines, events, read_json(directory / layout.SUMMARY) or {})


def _read_lines(path: Path) -> Iterator[Line]:
    """Every complete line; one truncated by a crash is skipped."""
    with suppress(OSError), path.open(errors="replace") as lines:
        for line in lines:
            with suppress(ValueError):
                content = json.loads(line)
                if isinstance(content, dict) and "event" in content and "time" in content:
                    yield content
