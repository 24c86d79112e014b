"""Runs for tests of the report, written by the writers of real runs from chosen numbers."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from launcher.metrics.definitions import ALL_REDUCE_BUCKETS, ALL_REDUCE_KINDS
from launcher.train.observers.base import EpochDone, RunStarted, SaveDone, StepDone, WindowDone
from launcher.train.observers.journal import Journal


@dataclass(frozen=True)
class Story:
    """How a made-up run goes. `slow` is (rank, factor); `nan_from` the step the loss breaks at."""

    ranks: int = 4
    epochs: int = 6
    steps_per_epoch: int = 60
    layers: int = 4
    slow: tuple[int, float] = (0, 1.0)
    nan_from: int | None = None
    input_share: float = 0.02
    overfits: bool = False
    step_seconds: float = 0.1
    notes: tuple[str, ...] = ()


def write_run(directory: Path, story: Story, summary: dict[str, Any] | None = None) -> Path:
    """Writes metrics.jsonl and summary.json of a run that the story describes."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    epoch_drift = {"epoch": 0}

    def drift() -> dict[str, tuple[float, float]]:
        far = 0.6 * 0.35 ** epoch_drift["epoch"]
        return {f"block{i}_bn": (far / (i + 1), far / (i + 2)) for i in range(story.layers)}

    about = {"config": {"model": "cnn", "batch_size": 32}, "versions": {"python": "3.11.2"}}
    journal = Journal(directory / "metrics.jsonl", about, lambda: 1.5, drift)
    journal.on_start(_started(story, directory))
    checkpoint = directory / "step.npz"
    checkpoint.write_bytes(bytes(1000))
    step = 0
    validation = 0.0
    for epoch in range(story.epochs):
        epoch_drift["epoch"] = epoch
        for _ in range(story.steps_per_epoch):
            step += 1
            journal.on_step(_step(story, epoch, step, float(random.lognormal(0, 0.15))))
        journal.on_window(_window(story, epoch, step))
        journal.on_saved(SaveDone(step, checkpoint, 0.05))
        validation = 2.2 * math.exp(-0.9 * (epoch + 1)) + 0.05
        if story.overfits and epoch > 1:
            validation = 0.3 + 0.2 * epoch
        journal.on_epoch(
            EpochDone(epoch, step, validation * 0.8, 0.9, validation, 0.95, 0.01, 900.0, 6.0)
        )
    ended = {"steps": step, "stopped": False, "accuracy": 0.95, "loss": validation}
    ended |= {"images_per_second": story.ranks * 32 / story.step_seconds, **(summary or {})}
    journal.on_end(ended)
    (directory / "summary.json").write_text(json.dumps(ended))
    return directory


def write_launcher_journal(directory: Path, *events: dict[str, Any]) -> None:
    """Writes journal.jsonl."""
    text = "".join(json.dumps(event) + "\n" for event in events)
    (directory / "journal.jsonl").write_text(text)


def _started(story: Story, output: Path) -> RunStarted:
    return RunStarted(
        model="cnn",
        dataset="digits",
        parameters=66_474,
        rank=0,
        world_size=story.ranks,
        backend="mpi",
        norm="sync",
        epochs=story.epochs,
        epoch=0,
        step=0,
        steps_per_epoch=story.steps_per_epoch,
        output=output,
        notes=story.notes,
    )


def _step(story: Story, epoch: int, step: int, noise: float) -> StepDone:
    loss = 2.3 * math.exp(-step / 80) * noise + 0.02
    done = StepDone(
        epoch=epoch,
        step=step,
        loss=loss,
        accuracy=1 - min(0.9, loss / 2.5),
        rows=32 * story.ranks,
        learning_rate=0.01,
        seconds=story.step_seconds * noise,
        rows_here=32,
        input_seconds=0.001,
    )
    broken = story.nan_from is not None and step >= story.nan_from
    return replace(done, loss=float("nan")) if broken else done


def _window(story: Story, epoch: int, step: int) -> WindowDone:
    steps, ranks = story.steps_per_epoch, story.ranks
    seconds = story.step_seconds * steps
    own = np.full(ranks, 0.6 * seconds)
    own[story.slow[0]] *= story.slow[1]
    spread = 0.02 * (np.arange(ranks) % 3) * seconds
    own += np.where(np.arange(ranks) == story.slow[0], 0, -spread)
    waits = seconds - own
    latencies = np.zeros(len(ALL_REDUCE_BUCKETS) + 1, int)
    latencies[4:9] = [30, 200, 120, 40, 10]
    return WindowDone(
        epoch,
        step,
        steps,
        {
            "seconds": [seconds] * ranks,
            "input_wait": [story.input_share * seconds] * ranks,
            "compute": (own - story.input_share * seconds).tolist(),
            "gradient_all_reduce": (0.6 * waits).tolist(),
            "sync_batch_norm_all_reduce": (0.35 * waits).tolist(),
            "other_all_reduce": (0.05 * waits).tolist(),
            "rows": [32.0 * steps] * ranks,
            "resident_memory": [8e8] * ranks,
        },
        {kind: latencies.tolist() for kind in ALL_REDUCE_KINDS},
        dict.fromkeys(ALL_REDUCE_KINDS, 265_000 * steps * ranks),
    )
