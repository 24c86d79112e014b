"""Where the time of a rank's steps goes: its parts, its windows, its page, and the slowest rank."""

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from launcher.metrics import RANK_METRICS, Page
from launcher.metrics import definitions as m
from launcher.train.observers.base import Observer, Observers
from launcher.train.observers.cross_rank import CrossRankWindows, slowest
from launcher.train.observers.step_timing import StepTiming, Sums
from syncbn.communicators.local import LocalCommunicator
from syncbn.telemetry import Span
from tests.launcher.train.observers.events import epoch_done, run_started, step_done


def test_the_parts_of_a_step_add_up() -> None:
    sums = Sums()
    spans = [
        Span("sync_batch_norm", "a", 0.0, 0.01, 1040),
        Span("sync_batch_norm", "b", 0.0, 0.02, 1040),
        Span("gradients", "g", 0.0, 0.015, 265_000),
        Span("other", "s", 0.0, 0.005, 16),
    ]
    sums.add(step_done(1), spans)
    assert sum(sums.parts.values()) == pytest.approx(0.1)
    assert sums.parts["compute"] == pytest.approx(0.1 - 0.02 - 0.05)
    assert sums.all_reduces["sync_batch_norm"] == [0.01, 0.02]
    assert sums.bytes == {"sync_batch_norm": 2080, "gradients": 265_000, "other": 16}
    sums.add(step_done(2, seconds=0.03), [*spans, *spans])
    assert sums.parts["compute"] == pytest.approx(0.03), "overlapping collectives: never negative"


def test_the_page_follows_the_steps_to_the_last_one() -> None:
    page = Page(RANK_METRICS)
    timing = StepTiming(page)
    timing.on_start(run_started(step=7))
    for step in (8, 9, 10):
        timing.on_step(step_done(step, loss=math.nan if step == 10 else 0.5))
    timing.on_epoch(epoch_done(10))
    timing.on_end({})
    text = page.text().decode()
    for line in (
        "training_steps_total 3.0",
        "training_examples_total 96.0",
        "training_step_duration_seconds_count 3.0",
        "training_loss NaN",
        "training_non_finite_losses_total 1.0",
        "training_validation_accuracy_ratio 0.8",
        "training_learning_rate 0.01",
    ):
        assert f"\n{line}\n" in text
    assert len(timing.take_window().steps) == 2, "the compiled first step is in no window"
    assert timing.take_window().steps == []


def test_windows_close_after_fifty_steps_and_at_the_end_of_epochs(tmp_path: Path) -> None:
    page = Page(RANK_METRICS)
    timing = StepTiming(page)
    heard: list[tuple[int, int]] = []

    class Listener(Observer):
        def on_window(self, window: Any) -> None:
            heard.append((window.step, window.steps))

    variable = keras.Variable(np.ones(3))
    ranks = LocalCommunicator()
    exchange = CrossRankWindows(timing, page, ranks, [variable], Listener())
    observers = Observers([timing, exchange])
    observers.on_start(run_started(epochs=1, steps_per_epoch=70))
    for step in range(1, 71):
        observers.on_step(step_done(step))
    observers.on_epoch(epoch_done(70))
    observers.on_step(step_done(71))
    observers.on_end({"steps": 71})
    assert heard == [(51, 50), (70, 19), (71, 1)]
    assert page.registry.get_sample_value("training_diverged_ranks") == 0
    assert page.registry.get_sample_value("training_slowest_rank_ratio") == 1


def test_the_slowest_rank_is_compared_with_the_others() -> None:
    assert slowest(np.array([1.0, 1.5])) == (1, 1.5)
    rank, ratio = slowest(np.array([1.0, 1.1, 2.0, 1.2]))
    assert (rank, round(ratio, 4)) == (2, 1.8182)
    assert slowest(np.array([3.0])) == (0, 1.0)
    assert slowest(np.zeros(2)) == (0, 1.0)


def test_every_part_of_a_step_and_kind_of_all_reduce_is_a_label() -> None:
    assert set(Sums().parts) == set(m.STEP_PARTS)
    assert set(Sums().all_reduces) == set(m.ALL_REDUCE_KINDS)
