"""Out of memory: known on every rank, with what to change; or batches cut until they fit.

A rank whose allocation failed never reaches the collective that its peers wait in. So it leaves a
note beside the results, which a thread of each peer looks out for; and with `--on-oom shrink` the
step is tried on each rank by itself, before the ranks depend on each other. What still runs out
later ends the job with a note, and the next attempt begins with twice the pieces.
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

import numpy as np
import tensorflow as tf

from launcher.atomic import replace_json
from launcher.errors import LauncherError
from launcher.train.config import TrainConfig
from launcher.train.coordination import broadcast_json, ranks_where
from launcher.train.data import DataSet
from launcher.train.models import build_model
from launcher.train.optimizers import make_optimizer
from launcher.train.replicas import Replicas
from launcher.train.steps import Steps
from syncbn.communicators import Communicator
from syncbn.communicators.local import LocalCommunicator

_log = logging.getLogger(__name__)

NOTE = "out-of-memory.json"
_SECONDS_BETWEEN_LOOKS = 0.25
_SECONDS_FOR_PEERS = 2.0
# What only just fits one step need not fit the next: the peak depends on which operations happen
# to run side by side, and memory comes in pieces.
_ROOM = 1.25


class OutOfMemoryError(LauncherError):
    """A rank has no memory left, and no smaller micro-batch is possible or allowed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that an allocation failed."""
    if isinstance(error, tf.errors.ResourceExhaustedError | MemoryError):
        return True
    # What TensorFlow says when a large constant does not fit.
    text = "Cannot parse tensor from proto"
    return isinstance(error, tf.errors.InvalidArgumentError) and text in str(error)


def describe(text: str, rank: int, rows: int) -> str:
    """Which tensor, on which rank, at how many rows: `text` is what TensorFlow says."""
    tensor = re.search(r"allocating tensor with shape\s*\[([\d,]*)\] and type (\w+) on (\S+)", text)
    node = re.search(r"Detected at node (\S+)", text)
    what = "an allocation" if tensor is None else f"a {tensor[2]} tensor of shape [{tensor[1]}]"
    where = "" if node is None else f" in {node[1]}"
    device = "" if tensor is None else f" on {tensor[3].rstrip('.')}"
    return f"rank {rank} ran out of memory for {what}{where}{device}, with {rows} rows at a time"


def advise(config: TrainConfig, micro_batches: int) -> str:
    """What to change when batches in this many pieces do not fit."""
    if micro_batches >= config.batch_size:
        return "not even one row fits: use a smaller --model or smaller examples"
    if config.on_oom == "shrink":
        return f"start it again with --resume: it goes on in {2 * micro_batches} pieces"
    return (
        f"use --batch-size {-(-config.batch_size // micro_batches) // 2}, "
        f"--micro-batches {2 * micro_batches} (the same global batch in pieces), "
        "or --on-oom shrink to find what fits"
    )


def fit_micro_batches(
    config: TrainConfig, data: DataSet, communicator: Communicator, output: Path
) -> tuple[int, str | None]:
    """Few micro-batches with which training steps fit on every rank.

    Tries one step of a second model on each rank by itself, with a quarter more rows than a batch
    has, and halves the pieces on all ranks as long as memory runs out on any.

    Returns:
        The number of pieces, and what happened, for people (None if the whole batch fits).

    Raises:
        OutOfMemoryError: Not even single rows fit.
    """
    micro_batches = max(config.micro_batches, _noted(output, communicator))
    shortage: str | None = None
    while True:
        single = micro_batches >= config.batch_size
        rows = config.batch_size if single else math.ceil(_ROOM * config.batch_size)
        failure = _try_step(config, data, micro_batches, rows)
        failed = ranks_where(failure is not None, communicator)
        if not failed:
            break
        mine = failure and describe(failure, communicator.rank, math.ceil(rows / micro_batches))
        shortage = broadcast_json(mine, communicator, failed[0])
        if single:
            raise OutOfMemoryError(f"{shortage}: {advise(config, micro_batches)}")
        micro_batches = min(2 * micro_batches, config.batch_size)
    if shortage is None:
        return micro_batches, None
    story = f"{shortage}; each batch is now computed in {micro_batches} pieces"
    _log.info("%s", story)
    return micro_batches, story


def _try_step(config: TrainConfig, data: DataSet, micro_batches: int, rows: int) -> str | None:
    """Tries one step without any other rank; what TensorFlow says if memory runs out."""
    try:
        _step_alone(config, data, micro_batches, rows)
    except (tf.errors.OpError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return str(error)
    finally:
        # After the step's own frame has gone: the next try needs what this one holds.
        gc.collect()
    return None


def _step_alone(config: TrainConfig, data: DataSet, micro_batches: int, rows: int) -> None:
    """One step on zeros of a second model."""
    alone = config.model_copy(update={"norm": "none" if config.norm == "none" else "local"})
    model = build_model(alone, data)
    optimizer = make_optimizer(alone, LocalCommunicator())
    optimizer.build(model.trainable_variables)
    steps = Steps(alone, model, optimizer, LocalCommunicator(), Replicas(), micro_batches)
    features = np.zeros((rows, *data.shape), np.float32)
    steps.train(features, np.zeros(rows, np.int32), False, rows)


def _noted(output: Path, communicator: Communicator) -> int:
    """Twice the micro-batches with which an earlier attempt ran out of memory, 1 if none did."""
    note: dict[str, Any] | None = None
    if communicator.rank == 0 and (output / NOTE).exists():
        note = json.loads((output / NOTE).read_text())
    note = broadcast_json(note, communicator)
    return 1 if note is None else 2 * int(note["micro_batches"])


def leave(
    error: BaseException, rank: int, config: TrainConfig, micro: int, output: Path
) -> NoReturn:
    """Tells the peers why this rank ends, and ends it."""
    cause = describe(str(error), rank, math.ceil(config.batch_size / micro))
    message = f"{cause}: {advise(config, micro)}"
    _log.error("%s", message)
    note = {"rank": rank, "message": message, "micro_batches": micro, "time": time.time()}
    with suppress(OSError):  # a full disk: the peers then see only that this rank ends
        replace_json(output / NOTE, note)
    print(f"launcher.train: {message}", file=sys.stderr, flush=True)
    time.sleep(_SECONDS_FOR_PEERS)  # A rank that ends takes the others with it before they know.
    os._exit(OutOfMemoryError.exit_code)


def watch_peers(rank: int, output: Path, exit_process: Callable[[int], Any] = os._exit) -> None:
    """Ends this process, with the reason in its log, when a peer notes that it has no memory.

    In a thread of its own: the main one may hang in a collective with that peer.
    """
    began = time.time()

    def look() -> None:
        while True:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            try:
                note = json.loads((output / NOTE).read_text())
            except (OSError, ValueError):
                continue
            if note["time"] > began and note["rank"] != rank:
                _log.error("%s", note["message"])
                if rank == 0:
                    print(f"launcher.train: {note['message']}", file=sys.stderr, flush=True)
                exit_process(OutOfMemoryError.exit_code)

    threading.Thread(target=look, name="peer-memory", daemon=True).start()
