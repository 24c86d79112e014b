"""Shares step measurements between the ranks: one small all-reduce every few dozen steps.

Rank 0 can then name the slowest rank and record all of them, on any backend and without a shared
file system.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import tensorflow as tf

from launcher.metrics import Page
from launcher.metrics import definitions as m
from launcher.train.observers.base import EpochDone, Observer, RunStarted, StepDone, WindowDone
from launcher.train.observers.step_timing import StepTiming, Sums
from syncbn.communicators import Communicator
from syncbn.fingerprints import fingerprint

# Approximate number of windows in a run, and bounds on the steps of a window.
_WINDOWS = 400
_MIN_STEPS, _MAX_STEPS = 50, 1000

# The measurements of a window, one number per rank each.
COLUMNS = ("seconds", *m.STEP_PARTS, "rows", "resident_memory", "fingerprint")
_BINS = len(m.ALL_REDUCE_BUCKETS) + 1


class CrossRankWindows(Observer):
    """Combines the windows of all ranks, passes them to a listener, and reports the slowest rank.

    Every rank issues the same collectives, whatever fails on one of them.

    Args:
        timing: The measurements of this rank.
        page: The metrics page of this rank.
        communicator: The ranks.
        weights: Variables that must be equal on all ranks.
        listener: Its `on_window` is called on every rank.
    """

    essential = True

    def __init__(
        self,
        timing: StepTiming,
        page: Page,
        communicator: Communicator,
        weights: Sequence[Any],
        listener: Observer,
    ) -> None:
        self._timing, self._page, self._communicator = timing, page, communicator
        self._weights, self._listener = weights, listener
        self._every = _MIN_STEPS
        self._since = 0
        self._epoch = self._step = 0
        self._process = psutil.Process()

    def on_start(self, run: RunStarted) -> None:
        planned = run.epochs * run.steps_per_epoch // _WINDOWS
        self._every = min(max(planned, _MIN_STEPS), _MAX_STEPS)
        self._epoch, self._step = run.epoch, run.step
        self._since = -1  # the first step includes compilation and belongs to no window

    def on_step(self, step: StepDone) -> None:
        self._epoch, self._step = step.epoch, step.step
        self._since += 1
        if self._since == self._every:
            self._combine()

    def on_epoch(self, epoch: EpochDone) -> None:
        table = self._combine(_fingerprint(self._weights))
        prints = table[:, COLUMNS.index("fingerprint")]
        self._page[m.DIVERGED_RANKS].set(int((prints != prints[0]).sum()))

    def on_end(self, summary: dict[str, Any]) -> None:
        if self._since > 0:
            self._combine()

    def _combine(self, fingerprint: float = 0.0) -> np.ndarray:
        """The measurements of all ranks, (ranks, COLUMNS). A collective call."""
        mine = self._timing.take_window()
        size, width = self._communicator.size, len(COLUMNS)
        table = np.zeros((size, width))
        table[self._communicator.rank] = [
            sum(mine.steps),
            *mine.parts.values(),
            mine.rows,
            self._process.memory_info().rss,
            fingerprint,
        ]
        message = tf.constant(np.concatenate([table.ravel(), _spread(mine)]))
        total = self._communicator.all_reduce(message, "step_window").numpy()
        table = total[: size * width].reshape(size, width)
        steps, self._since = self._since, 0
        if steps > 0:
            self._show_slowest(table)
            kinds = total[size * width :].reshape(len(m.ALL_REDUCE_KINDS), _BINS + 1)
            self._listener.on_window(_window(self._epoch, self._step, steps, table, kinds))
        return table

    def _show_slowest(self, table: np.ndarray) -> None:
        rank, ratio = slowest(
            table[:, COLUMNS.index("compute")] + table[:, COLUMNS.index("input_wait")]
        )
        self._page[m.SLOWEST_RANK].set(rank)
        self._page[m.SLOWEST_RANK_RATIO].set(ratio)


def slowest(own_seconds: np.ndarray) -> tuple[int, float]:
    """The rank with the longest own time, and the ratio to the median of the others."""
    rank = int(own_seconds.argmax())
    if len(own_seconds) == 1:
        return 0, 1.0
    others = float(np.median(np.delete(own_seconds, rank)))
    return rank, float(own_seconds[rank]) / others if others > 0 else 1.0


def _window(epoch: int, step: int, steps: int, table: np.ndarray, kinds: np.ndarray) -> WindowDone:
    return WindowDone(
        epoch,
        step,
        steps,
        {name: table[:, i].tolist() for i, name in enumerate(COLUMNS) if name != "fingerprint"},
        {
            k: row[:-1].astype(int).tolist()
            for k, row in zip(m.ALL_REDUCE_KINDS, kinds, strict=True)
        },
        {k: int(row[-1]) for k, row in zip(m.ALL_REDUCE_KINDS, kinds, strict=True)},
    )


def _spread(sums: Sums) -> np.ndarray:
    """For each kind of all-reduce, the counts by bucket and the bytes."""
    rows = []
    for kind in m.ALL_REDUCE_KINDS:
        bins = np.searchsorted(m.ALL_REDUCE_BUCKETS, sums.all_reduces[kind])
        rows.append([*np.bincount(bins, minlength=_BINS), sums.bytes[kind]])
    return np.asarray(rows, np.float64).ravel()


def _fingerprint(weights: Sequence[Any]) -> float:
    """A checksum of all values, exact in float64; -1 if it cannot be computed."""
    try:
        return float(fingerprint(weights))
    except (ValueError, TypeError, MemoryError):
        return -1.0
