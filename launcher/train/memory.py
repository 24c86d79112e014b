"""Out of memory: reported on every rank with advice, or avoided with micro-batches.

A rank whose allocation fails never reaches the collective in which its peers wait. It writes a note
to the output directory, which a thread on each peer polls. With `--on-oom shrink` each rank first
tries a step alone, before the ranks depend on each other. A later failure ends the job with a
note, and the next attempt starts with twice as many micro-batches.
"""

import gc
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from launcher.atomic import replace_json
from launcher.errors import LauncherError
from launcher.train.coordination import broadcast_json, ranks_where
from launcher.train.replicas import Replicas
from launcher.train.steps import Steps
from syncbn.communicators import Communicator
from syncbn.communicators.local import LocalCommunicator

_log = logging.getLogger(__name__)

NOTE = "out-of-memory.json"
_POLL_SECONDS = 0.25
_SECONDS_FOR_PEERS = 2.0
# A step that only just fits may fail the next time: the peak depends on which operations happen to
# run at the same time, and memory fragments.
_MARGIN = 1.25


class OutOfMemoryError(LauncherError):
    """A rank is out of memory, and no smaller micro-batch is possible or allowed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` reports a failed allocation."""
    if isinstance(error, tf.errors.ResourceExhaustedError | MemoryError):
        return True
    # TensorFlow's message for a large constant that does not fit.
    text = "Cannot parse tensor from proto"
    return isinstance(error, tf.errors.InvalidArgumentError) and text in str(error)


def describe(text: str, rank: int, rows: int) -> str:
    """Names the tensor, the rank, and the number of rows; `text` is TensorFlow's message."""
    tensor = re.search(r"allocating tensor with shape\s*\[([\d,]*)\] and type (\w+) on (\S+)", text)
    node = re.search(r"Detected at node (\S+)", text)
    what = "an allocation" if tensor is None else f"a {tensor[2]} tensor of shape [{tensor[1]}]"
    where = "" if node is None else f" in {node[1]}"
    device = "" if tensor is None else f" on {tensor[3].rstrip('.')}"
    return f"rank {rank} ran out of memory for {what}{where}{device}, with {rows} rows at a time"


def advise(batch_size: int, micro_batches: int, shrink: bool) -> str:
    """What to change when a batch does not fit.

    Args:
        batch_size: Rows per rank and step.
        micro_batches: Parts the batch was computed in.
        shrink: Whether `--on-oom shrink` is set.
    """
    if micro_batches >= batch_size:
        return "not even one row fits: use a smaller --model or smaller examples"
    if shrink:
        return f"start it again with --resume: it continues with {2 * micro_batches} micro-batches"
    return (
        f"use --batch-size {-(-batch_size // micro_batches) // 2}, "
        f"--micro-batches {2 * micro_batches} (the same global batch in parts), "
        "or --on-oom shrink to find what fits"
    )


class StepTrial:
    """Tries a training step of a second model on this rank alone, to see whether it fits.

    Args:
        new_model: Builds the model, without synchronization.
        new_optimizer: Makes an optimizer for a communicator.
        new_steps: Makes the compiled steps of a model.
        shape: Shape of the features of one example.
    """

    def __init__(
        self,
        new_model: Callable[[], keras.Model],
        new_optimizer: Callable[..., Any],
        new_steps: Callable[..., Steps],
        shape: tuple[int, ...],
    ) -> None:
        self._new_model, self._new_optimizer = new_model, new_optimizer
        self._new_steps, self._shape = new_steps, shape

    def __call__(self, micro_batches: int, rows: int) -> None:
        """Runs one step on zeros."""
        alone = LocalCommunicator()
        model, optimizer = self._new_model(), self._new_optimizer(communicator=alone)
        optimizer.build(model.trainable_variables)
        steps = self._new_steps(model, optimizer, alone, Replicas(), micro_batches=micro_batches)
        features = np.zeros((rows, *self._shape), np.float32)
        steps.train(features, np.zeros(rows, np.int32), False, rows, learning_rate=0.0)


def fit_micro_batches(
    try_step: Callable[[int, int], None],
    batch_size: int,
    micro_batches: int,
    communicator: Communicator,
    output: Path,
) -> tuple[int, str | None]:
    """Finds a small number of micro-batches with which training steps fit on every rank.

    Tries a step on each rank alone with a quarter more rows than a batch has, and doubles the
    number of micro-batches on all ranks as long as memory runs out on any. A collective call.

    Args:
        try_step: Runs one step without communication, given micro-batches and rows.
        batch_size: Rows per rank and step.
        micro_batches: The number to start with.
        communicator: The ranks.
        output: The output directory, where an earlier attempt may have left a note.

    Returns:
        The number of micro-batches, and a message for the user (None if the first number fits).

    Raises:
        OutOfMemoryError: Not even single rows fit.
    """
    micro_batches = max(micro_batches, _from_note(output, communicator))
    shortage: str | None = None
    while True:
        single = micro_batches >= batch_size
        rows = batch_size if single else math.ceil(_MARGIN * batch_size)
        failure = _attempt(try_step, micro_batches, rows)
        failed = ranks_where(failure is not None, communicator)
        if not failed:
            break
        mine = failure and describe(failure, communicator.rank, math.ceil(rows / micro_batches))
        shortage = broadcast_json(mine, communicator, failed[0])
        if single:
            raise OutOfMemoryError(f"{shortage}: {advise(batch_size, micro_batches, shrink=True)}")
        micro_batches = min(2 * micro_batches, batch_size)
    if shortage is None:
        return micro_batches, None
    message = f"{shortage}; each batch is now computed in {micro_batches} micro-batches"
    _log.info("%s", message)
    return micro_batches, message


def _attempt(try_step: Callable[[int, int], None], micro_batches: int, rows: int) -> str | None:
    """Runs one step; returns TensorFlow's message if memory runs out."""
    try:
        try_step(micro_batches, rows)
    except (tf.errors.OpError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return str(error)
    finally:
        # Once the frame of the step is gone: the next attempt needs its memory.
        gc.collect()
    return None


def _from_note(output: Path, communicator: Communicator) -> int:
    """Twice the micro-batches with which an earlier attempt ran out of memory; 1 without a note."""
    note: dict[str, Any] | None = None
    if communicator.rank == 0 and (output / NOTE).exists():
        note = json.loads((output / NOTE).read_text())
    note = broadcast_json(note, communicator)
    return 1 if note is None else 2 * int(note["micro_batches"])


def exit_out_of_memory(
    error: BaseException,
    rank: int,
    *,
    batch_size: int,
    micro_batches: int,
    shrink: bool,
    output: Path,
) -> NoReturn:
    """Writes the note for the peers, and ends this rank."""
    cause = describe(str(error), rank, math.ceil(batch_size / micro_batches))
    message = f"{cause}: {advise(batch_size, micro_batches, shrink)}"
    _log.error("%s", message)
    note = {"rank": rank, "message": message, "micro_batches": micro_batches, "time": time.time()}
    with suppress(OSError):  # on a full disk the peers only see that this rank ends
        replace_json(output / NOTE, note)
    print(f"launcher.train: {message}", file=sys.stderr, flush=True)
    time.sleep(_SECONDS_FOR_PEERS)  # a rank that exits ends its peers before they read the note
    os._exit(OutOfMemoryError.exit_code)


def watch_peers(rank: int, output: Path, exit_process: Callable[[int], Any] = os._exit) -> None:
    """Ends this process, with the reason in its log, when a peer runs out of memory.

    Polls in a thread, because the main thread may wait in a collective for that peer.
    """
    started = time.time()

    def poll() -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            try:
                note = json.loads((output / NOTE).read_text())
            except (OSError, ValueError):
                continue
            if note["time"] > started and note["rank"] != rank:
                _log.error("%s", note["message"])
                if rank == 0:
                    print(f"launcher.train: {note['message']}", file=sys.stderr, flush=True)
                exit_process(OutOfMemoryError.exit_code)

    threading.Thread(target=poll, name="peer-memory", daemon=True).start()
