"""Saving and resuming the state of a run: rank 0 writes and reads, all ranks get the result."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from launcher.errors import UsageError
from launcher.train.checkpoint import Checkpoint, CheckpointStore, check_fits
from launcher.train.coordination import broadcast_json, together
from launcher.train.environment import is_elastic, launcher_attempt
from launcher.train.observers.base import SaveDone
from launcher.train.train_state import TrainState
from syncbn.communicators import Communicator

_log = logging.getLogger(__name__)

# Options that may change when a run resumes; a change is reported.
_REPORTED = ("batch_size", "epochs", "learning_rate", "optimizer", "norm", "dataset", "seed")


def save_state(
    store: CheckpointStore,
    state: TrainState,
    variables: list[Any],
    options: Mapping[str, Any],
    world_size: int,
    micro_batches: int,
) -> SaveDone:
    """Writes a checkpoint. Only rank 0 calls it.

    Args:
        store: Where to write.
        state: The loop state.
        variables: All variables that training changes.
        options: The options of the run; a change is reported when the run resumes.
        world_size: Replicas over all processes.
        micro_batches: Parts of each batch.

    Raises:
        WriteError: The file cannot be written.
    """
    started = time.perf_counter()
    meta = {
        "position": asdict(state),
        "world_size": world_size,
        "micro_batches": micro_batches,
        "config": options,
        "variables": [variable.path for variable in variables],
    }
    arrays = [np.asarray(variable) for variable in variables]
    path = store.save(Checkpoint(state.step, meta, arrays))
    return SaveDone(state.step, path, time.perf_counter() - started)


@dataclass(frozen=True)
class Resumed:
    """The checkpoint from which a run resumes.

    Attributes:
        state: The loop state.
        path: The file, as rank 0 sees it.
        notes: Messages for the user: damaged checkpoints, the file, and changed options.
    """

    state: TrainState
    path: str
    notes: tuple[str, ...]


def restore(
    store: CheckpointStore,
    variables: list[Any],
    communicator: Communicator,
    resume: bool,
    options: Mapping[str, Any],
    world_size: int,
) -> Resumed | None:
    """Restores the latest checkpoint; None if there is none. A collective call.

    Only rank 0 restores the variables: a later broadcast sends them to the others.

    Args:
        store: The checkpoints of the run.
        variables: Variables that the checkpoint must match.
        communicator: The ranks.
        resume: Whether `--resume` was given; a restart by the launcher resumes without it.
        options: The options of this run, to compare with those of the checkpoint.
        world_size: Replicas over all processes now.

    Raises:
        UsageError: There are checkpoints but `resume` is False, none of them is intact, or the
            latest belongs to another model.
    """
    found = together(communicator, lambda: _find(store, variables, resume, communicator.rank))
    sent: Any = None if found is None else [found[0].meta, str(found[0].path), found[1]]
    if not is_elastic():  # elastic ranks receive it when they join: see `elastic`
        sent = broadcast_json(sent, communicator)
    if sent is None:
        return None
    meta, path, warnings = sent
    notes = (*warnings, f"resumes from {path}", *_changes(meta, options, world_size))
    for note in notes:
        _log.info("%s", note)
    if found is not None:
        for variable, array in zip(variables, found[0].arrays, strict=True):
            variable.assign(array)
    return Resumed(TrainState(**meta["position"]), path, notes)


def _find(
    store: CheckpointStore, variables: list[Any], resume: bool, rank: int
) -> tuple[Checkpoint, list[str]] | None:
    """The latest checkpoint and warnings about damaged ones; None on all ranks but rank 0."""
    if rank != 0 or not store.paths():
        return None
    if not (resume or launcher_attempt() > 0):
        raise UsageError(
            f"{store.directory} holds checkpoints of an earlier run: "
            "continue it with --resume, or choose another --output"
        )
    checkpoint, warnings = store.latest()
    if checkpoint is None:
        raise UsageError(f"no checkpoint in {store.directory} is intact: {warnings[0]}")
    check_fits(checkpoint, variables)
    return checkpoint, warnings


def _changes(meta: dict[str, Any], options: Mapping[str, Any], world_size: int) -> tuple[str, ...]:
    before = meta["config"] | {"world_size": meta["world_size"]}
    now = {**options, "world_size": world_size}
    return tuple(
        f"{name.replace('_', ' ')} was {before[name]}, is now {now[name]}"
        for name in ("world_size", *_REPORTED)
        if before.get(name) != now[name]
    )
