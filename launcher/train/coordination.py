"""Collective decisions of the ranks: join the job, fail together, share small values."""

import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import tensorflow as tf

import syncbn
from launcher.errors import LauncherError, UsageError
from launcher.train.environment import is_elastic, launcher_run
from syncbn.communicators import Communicator
from syncbn.communicators.cluster_environment import cluster_environment
from syncbn.errors import SyncbnError

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class PeerError(LauncherError):
    """Another rank failed and reports why; this rank exits without its own message."""

    exit_code = 2


def join(backend: str) -> Communicator:
    """Calls `syncbn.init` and turns its errors into usage errors.

    Raises:
        UsageError: The backend is not installed, does not match how the ranks were started, or
            would let each rank of a multi-process job train alone.
    """
    try:
        cluster = cluster_environment()
        if backend == "local" and cluster.size > 1:
            raise UsageError(
                f"--backend local trains alone, but this is rank {cluster.rank} of {cluster.size} "
                f"({cluster.source}): no communicator would be initialised. Use --backend auto"
            )
        return syncbn.init(backend)
    except SyncbnError as error:
        raise UsageError(str(error)) from error


def together(communicator: Communicator, action: Callable[[], Result]) -> Result:
    """Runs `action` on every rank; if it fails on any rank, all ranks raise.

    A collective call, except in elastic jobs, whose ranks join one by one.

    Raises:
        LauncherError: On the lowest rank that failed: the error of `action`, prefixed with the
            rank unless all ranks failed.
        PeerError: On all other ranks, with the same exit code.
    """
    if is_elastic():
        return action()
    result, failure = None, None
    try:
        result = action()
    except LauncherError as error:
        failure = error
    codes = _gather(0 if failure is None else failure.exit_code, communicator)
    failed = np.flatnonzero(codes).tolist()
    if not failed:
        return result  # type: ignore[return-value]
    if failure is not None and failed[0] == communicator.rank:
        where = "" if len(failed) == communicator.size else f"rank {communicator.rank}: "
        failure.args = (f"{where}{failure}",)
        raise failure
    peer = PeerError(f"rank {failed[0]} failed")
    peer.exit_code = int(codes[failed[0]])
    raise peer


def ranks_where(condition: bool, communicator: Communicator) -> list[int]:
    """The ranks on which `condition` holds, returned on all ranks. A collective call."""
    return np.flatnonzero(_gather(float(condition), communicator)).tolist()


def name_ranks(ranks: list[int]) -> str:
    """`rank 1` or `ranks 0, 2`."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _gather(number: float, communicator: Communicator) -> np.ndarray:
    """The number of each rank, by rank. A collective call."""
    numbers = tf.one_hot(communicator.rank, communicator.size) * float(number)
    return communicator.all_reduce(numbers, "flags").numpy()


def exit_alone(error: LauncherError, communicator: Communicator) -> NoReturn:
    """Ends this rank, and with it the job, after an error that the other ranks do not have.

    The others wait in a collective for this rank, and an orderly exit would wait for them.
    """
    if communicator.size == 1:
        raise error
    _log.error("%s", error)
    print(f"launcher.train: rank {communicator.rank}: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


def broadcast_json(value: Any, communicator: Communicator, root: int = 0) -> Any:
    """The JSON value of rank `root` on every rank. A collective call."""
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(communicator.broadcast([tf.constant(len(content), tf.int64)], root)[0])
    # The buffers of all ranks must have the length of the root's value.
    buffer = np.zeros(length, np.uint8)
    if communicator.rank == root:
        buffer[:] = content
    return json.loads(communicator.broadcast([tf.constant(buffer)], root)[0].numpy().tobytes())


def gather_json(value: Any, communicator: Communicator) -> list[Any]:
    """The JSON value of each rank, by rank, on every rank. A collective call."""
    return [broadcast_json(value, communicator, rank) for rank in range(communicator.size)]


def make_output_directory(given: Path | None, communicator: Communicator) -> Path:
    """Creates the output directory, which is the same on every rank.

    Args:
        given: The value of `--output`; None for the run directory of the launcher, or else a new
            directory under runs/.
        communicator: The ranks that agree on the name.

    Raises:
        UsageError: It cannot be written, or an elastic job has no `--output`.
    """
    directory = given or launcher_run()
    if is_elastic():
        # A rank that joins later cannot take part in a broadcast of the name.
        if directory is None:
            raise UsageError("an elastic job needs --output: ranks that join later must know it")
        return _make_directory(directory)
    if directory is None:
        name = f"runs/train-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        directory = Path(broadcast_json(name, communicator))
    output = directory
    return together(communicator, lambda: _make_directory(output))


def _make_directory(output: Path) -> Path:
    try:
        (output / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write to the output directory {output}: {error.strerror}"
        ) from error
    return output
