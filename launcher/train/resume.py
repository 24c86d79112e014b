"""Going on from a checkpoint: rank 0 reads it, every rank learns where the run stands."""

import logging
import os
from dataclasses import dataclass
from typing import Any

from launcher.errors import UsageError
from launcher.train.checkpoint import Checkpoint, CheckpointStore, check_fits
from launcher.train.config import TrainConfig
from launcher.train.coordination import broadcast_json
from launcher.train.environment import is_elastic
from syncbn.communicators import Communicator

_log = logging.getLogger(__name__)

# What may differ between the run that saved and the one that goes on, and is worth a word.
_TOLD = ("batch_size", "epochs", "learning_rate", "optimizer", "norm", "dataset", "seed")


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on.

    Attributes:
        meta: What the checkpoint says besides the values of the variables.
        path: The file, as rank 0 sees it.
        notes: What was passed over, where it goes on, and what is not as it was, for people.
    """

    meta: dict[str, Any]
    path: str
    notes: tuple[str, ...]


def find_checkpoint(
    config: TrainConfig, store: CheckpointStore, variables: list[Any], communicator: Communicator
) -> tuple[Checkpoint, list[str]] | None:
    """The checkpoint to go on from and warnings, on rank 0; None on the others, or to start anew.

    Raises:
        UsageError: There are checkpoints and nobody asked to resume, or the latest is of another
            model.
    """
    if communicator.rank != 0 or not store.paths():
        return None
    restarted = int(os.environ.get("LAUNCHER_ATTEMPT") or 0) > 0
    if not (config.resume or restarted):
        raise UsageError(
            f"{store.directory} holds checkpoints of an earlier run: "
            "go on with --resume, or choose another --output"
        )
    checkpoint, warnings = store.latest()
    if checkpoint is None:
        raise UsageError(f"none of the checkpoints in {store.directory} is sound: {warnings[0]}")
    check_fits(checkpoint, variables)
    return checkpoint, warnings


def share(
    found: tuple[Checkpoint, list[str]] | None,
    config: TrainConfig,
    world_size: int,
    communicator: Communicator,
) -> Resumed | None:
    """Tells all ranks what rank 0 found (the values follow with the first broadcast)."""
    told: Any = None if found is None else [found[0].meta, str(found[0].path), found[1]]
    if not is_elastic():  # There, ranks learn it when they meet: see `elastic`.
        told = broadcast_json(told, communicator)
    if told is None:
        return None
    meta, path, warnings = told
    notes = (*warnings, f"goes on from {path}", *_changes(meta, config, world_size))
    for note in notes:
        _log.info("%s", note)
    return Resumed(meta, path, notes)


def _changes(meta: dict[str, Any], config: TrainConfig, world_size: int) -> tuple[str, ...]:
    before = meta["config"] | {"world_size": meta["world_size"]}
    now = config.model_dump(mode="json") | {"world_size": world_size}
    return tuple(
        f"{name.replace('_', ' ')} was {before[name]}, is now {now[name]}"
        for name in ("world_size", *_TOLD)
        if before.get(name) != now[name]
    )
