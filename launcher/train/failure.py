"""How a rank ends when training fails: alone, or together with all others."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from launcher.atomic import WriteError
from launcher.errors import LauncherError
from launcher.heartbeat import Heartbeat
from launcher.train import memory
from launcher.train.coordination import PeerError, exit_alone
from launcher.train.divergence import DivergedError
from launcher.train.train_state import Outcome
from syncbn.communicators import Communicator
from syncbn.non_finite import ADVICE

_log = logging.getLogger(__name__)


def train_guarded(
    train: Callable[[], Outcome],
    communicator: Communicator,
    *,
    batch_size: int,
    micro_batches: int,
    shrink: bool,
    output: Path,
) -> Outcome:
    """Runs `train`; ends the whole job if this rank fails alone or runs out of memory.

    Args:
        train: The training loop.
        communicator: The ranks.
        batch_size: Rows per rank and step, for the advice when memory runs out, as are the next.
        micro_batches: Parts of each batch.
        shrink: Whether `--on-oom shrink` is set.
        output: The output directory, where a rank that runs out of memory leaves a note.

    Raises:
        DivergedError, WriteError, PeerError: On all ranks alike.
    """
    if communicator.size > 1:
        memory.watch_peers(communicator.rank, output)
    try:
        return train()
    except (DivergedError, WriteError, PeerError):
        raise
    except LauncherError as error:
        exit_alone(error, communicator)
    except (tf.errors.OpError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
        memory.exit_out_of_memory(
            error,
            communicator.rank,
            batch_size=batch_size,
            micro_batches=micro_batches,
            shrink=shrink,
            output=output,
        )


def describe_failure(failure: LauncherError | None) -> dict[str, Any] | None:
    """The entry `failure` of summary.json; its classes are those of the launcher."""
    if failure is None:
        return None
    name = "error"
    if isinstance(failure, DivergedError):
        name = "diverged"
    elif isinstance(failure, WriteError) and failure.full:
        name = "disk full"
    return {"class": name, "message": str(failure)}


def report_failure(
    failure: LauncherError,
    communicator: Communicator,
    checkpoints: list[Path],
    heartbeat: Heartbeat,
) -> int:
    """Reports a failure that all ranks share, and returns the exit code. A collective call.

    One rank prints it; the heartbeat of the others says that they exit because of a peer.
    """
    last = (
        f"the last checkpoint, {checkpoints[-1]}, is intact"
        if checkpoints
        else "no checkpoint was saved"
    )
    message = f"{failure}; {last}"
    reports = isinstance(failure, WriteError)
    if isinstance(failure, DivergedError):
        prefix = "" if communicator.rank == 0 else f"rank {communicator.rank}: "
        message = f"{prefix}diverged: {message}. {ADVICE}"
        reports = communicator.rank == failure.rank
    _log.error("%s", message)
    if reports:
        print(f"launcher.train: {message}", file=sys.stderr, flush=True)
    else:
        heartbeat.beat("leaving")
    communicator.barrier()  # a rank that exits may end the others: report first
    return failure.exit_code
