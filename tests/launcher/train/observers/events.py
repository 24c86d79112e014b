"""Example events for observers of a rank."""

from pathlib import Path
from typing import Any

from launcher.train.observers.base import EpochDone, RunStarted, StepDone


def run_started(step: int = 0, **changes: Any) -> RunStarted:
    fields: dict[str, Any] = {
        "model": "cnn",
        "dataset": "digits",
        "parameters": 1,
        "rank": 0,
        "world_size": 1,
        "backend": "local",
        "norm": "sync",
        "epochs": 2,
        "epoch": 0,
        "step": step,
        "steps_per_epoch": 10,
        "output": Path(),
    }
    return RunStarted(**(fields | changes))


def step_done(step: int, loss: float = 0.5, seconds: float = 0.1) -> StepDone:
    return StepDone(0, step, loss, 0.9, 64, 0.01, seconds, 32, 0.02)


def epoch_done(step: int) -> EpochDone:
    return EpochDone(0, step, 0.5, 0.9, 0.6, 0.8, 0.01, 100.0, 1.0)
