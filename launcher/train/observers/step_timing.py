"""Splits the duration of steps on this rank into parts, and updates its metrics page."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from launcher.metrics import Page
from launcher.metrics import definitions as m
from launcher.train.observers.base import EpochDone, Observer, RunStarted, SaveDone, StepDone
from syncbn import telemetry
from syncbn.telemetry import Span

_SECONDS_BETWEEN_UPDATES = 0.25

# The part of a step to which each kind of all-reduce belongs.
PART_OF_KIND = {
    "sync_batch_norm": "sync_batch_norm_all_reduce",
    "gradients": "gradient_all_reduce",
    "other": "other_all_reduce",
}


@dataclass
class Sums:
    """Durations of several steps of this rank in seconds; `parts` add up to the sum of `steps`."""

    steps: list[float] = field(default_factory=list)
    rows: int = 0
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(m.STEP_PARTS, 0.0))
    all_reduces: dict[str, list[float]] = field(
        default_factory=lambda: {kind: [] for kind in m.ALL_REDUCE_KINDS}
    )
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(m.ALL_REDUCE_KINDS, 0))

    def add(self, step: StepDone, spans: list[Span]) -> None:
        parts, outside = self.parts, step.seconds - step.input_seconds
        for kind, _, _, seconds, size in spans:
            self.all_reduces[kind].append(seconds)
            self.bytes[kind] += size
            parts[PART_OF_KIND[kind]] += seconds
            outside -= seconds
        self.steps.append(step.seconds)
        self.rows += step.rows_here
        parts["input_wait"] += step.input_seconds
        # Collectives in parallel branches overlap: their sum may exceed the duration of the step.
        parts["compute"] += max(0.0, outside)

    def join(self, later: "Sums") -> None:
        """Adds the durations of later steps."""
        self.steps += later.steps
        self.rows += later.rows
        for part, seconds in later.parts.items():
            self.parts[part] += seconds
        for kind, durations in later.all_reduces.items():
            self.all_reduces[kind] += durations
            self.bytes[kind] += later.bytes[kind]


class StepTiming(Observer):
    """Collects the collectives of every step from syncbn and updates the metrics page.

    Attributes:
        gradient_norm: Gradient norm of the latest step.
        on_spans: Callback for the collectives of each step and the time at its end, or None.
    """

    what = "step timing"

    def __init__(self, page: Page) -> None:
        telemetry.watch()
        self.gradient_norm = 0.0
        self.on_spans: Callable[[StepDone, list[Span], float], None] | None = None
        self._page = page
        self._pending = Sums()
        self._window = Sums()
        self._non_finite = 0
        self._updated = 0.0
        self._latest: StepDone | None = None
        self._first_step = 0

    def on_start(self, run: RunStarted) -> None:
        self._first_step = run.step + 1
        self._page[m.START].set_to_current_time()
        self._page[m.WORLD_SIZE].set(run.world_size)
        self._page[m.EPOCH].set(run.epoch)
        telemetry.collect()  # Discard collectives that ran before the first step.

    def on_step(self, step: StepDone) -> None:
        spans, numbers = telemetry.collect()
        self.gradient_norm = numbers.get("gradient_norm", 0.0)
        self._pending.add(step, spans)
        if not math.isfinite(step.loss):
            self._non_finite += 1
        if self.on_spans is not None:
            self.on_spans(step, spans, time.time())
        self._latest = step
        if step.step == self._first_step:
            self._update_page()
            self._window = Sums()  # the duration of compilation is not representative
        elif time.monotonic() - self._updated >= _SECONDS_BETWEEN_UPDATES:
            self._update_page()

    def on_evaluation(self, step: int) -> None:
        self._update_page()

    def on_save(self, step: int) -> None:
        self._update_page()

    def on_epoch(self, epoch: EpochDone) -> None:
        if epoch.validation_loss is not None and epoch.validation_accuracy is not None:
            self._page[m.VALIDATION_LOSS].set(epoch.validation_loss)
            self._page[m.VALIDATION_ACCURACY].set(epoch.validation_accuracy)

    def on_saved(self, save: SaveDone) -> None:
        self._page[m.CHECKPOINT_DURATION].observe([save.seconds])
        self._page[m.CHECKPOINT_SIZE].set(save.path.stat().st_size)
        self._page[m.CHECKPOINT_SUCCESS].set_to_current_time()

    def take_window(self) -> Sums:
        """The sums since the last call, without the first step, which includes compilation."""
        self._update_page()
        taken, self._window = self._window, Sums()
        return taken

    def on_end(self, summary: dict[str, Any]) -> None:
        self._update_page()

    def _update_page(self) -> None:
        page, sums, step = self._page, self._pending, self._latest
        if step is None or not sums.steps:
            return
        self._pending, self._updated = Sums(), time.monotonic()
        self._window.join(sums)
        page[m.STEPS].inc(len(sums.steps))
        page[m.EXAMPLES].inc(sums.rows)
        page[m.STEP_DURATION].observe(sums.steps)
        for part, seconds in sums.parts.items():
            page[m.STEP_PART].labels(part).inc(seconds)
        for kind, durations in sums.all_reduces.items():
            page[m.ALL_REDUCE_DURATION].observe(durations, kind)
            page[m.ALL_REDUCE_BYTES].labels(kind).inc(sums.bytes[kind])
        page[m.NON_FINITE_LOSSES].inc(self._non_finite)
        self._non_finite = 0
        page[m.LOSS].set(step.loss)
        page[m.ACCURACY].set(step.accuracy)
        page[m.LEARNING_RATE].set(step.learning_rate)
        page[m.GRADIENT_NORM].set(self.gradient_norm)
        page[m.EPOCH].set(step.epoch)
        page[m.LAST_STEP].set_to_current_time()
