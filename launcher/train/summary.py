"""summary.json: what a run was, how it went, how good the model is."""

from pathlib import Path
from typing import Any

from launcher.atomic import WriteError, replace_json
from launcher.runs.layout import SUMMARY
from launcher.train.config import TrainConfig
from launcher.train.loop import Trainer
from launcher.train.train_state import Outcome


def summarize(
    config: TrainConfig, trainer: Trainer, outcome: Outcome, output: Path, **facts: Any
) -> dict[str, Any]:
    """What summary.json holds. Loss and accuracy are of the held-out part, None if never taken."""
    loss, accuracy = outcome.validation or (None, None)
    return {
        "accuracy": accuracy,
        "loss": loss,
        "train_loss": outcome.train_loss,
        "images_per_second": outcome.times.images_per_second,
        "step_seconds_p50": outcome.times.median_seconds,
        "world_size": trainer.world_size,
        "norm": config.norm,
        "model": config.model,
        "dataset": config.dataset,
        "batch_size": config.batch_size,
        "epochs": trainer.position.epoch,
        "steps": trainer.position.step,
        "seed": config.seed,
        "stopped": outcome.stopped,
        "stopped_early": outcome.stopped_early,
        "skipped_updates": trainer.position.skipped,
        "output": str(output),
        **facts,
    }


def write_summary(summary: dict[str, Any], output: Path) -> None:
    """Writes summary.json, whole or not at all.

    Raises:
        WriteError: It cannot be written.
    """
    path = output / SUMMARY
    try:
        replace_json(path, summary)
    except OSError as error:
        raise WriteError(path, error) from error
