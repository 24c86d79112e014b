"""What the ranks settle among themselves before and after training."""

import hashlib
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

from launcher.errors import LauncherError, UsageError
from launcher.train.config import TrainConfig
from launcher.train.environment import is_elastic
from syncbn.communicators import Communicator, init
from syncbn.communicators.environment import surroundings
from syncbn.errors import SyncbnError

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class PeerError(LauncherError):
    """Another rank failed and says why; this one leaves without a word of its own."""

    exit_code = 2


def join(backend: str) -> Communicator:
    """`syncbn.init`, its refusals as usage errors.

    Raises:
        UsageError: The backend is missing, does not fit how the ranks were started, or would leave
            each rank of a multi-process job training alone.
    """
    try:
        around = surroundings()
        if backend == "local" and around.size > 1:
            raise UsageError(
                f"--backend local trains alone, but this is rank {around.rank} of {around.size} "
                f"({around.source}): no communicator would be initialised. Use --backend auto"
            )
        return init(backend)
    except SyncbnError as error:
        raise UsageError(str(error)) from error


def together(communicator: Communicator, action: Callable[[], Result]) -> Result:
    """Runs `action` on every rank; if it fails on any, all leave and the first that failed tells.

    Raises:
        LauncherError: From `action`, with the rank in front, on the lowest rank where it failed.
        PeerError: On all others, with the same exit code.
    """
    if is_elastic():
        return action()  # Ranks come one by one: see `agree_on_output`.
    result, failure = None, None
    try:
        result = action()
    except LauncherError as error:
        failure = error
    codes = _of_all_ranks(0 if failure is None else failure.exit_code, communicator)
    failed = np.flatnonzero(codes).tolist()
    if not failed:
        return result  # type: ignore[return-value]
    if failure is not None and failed[0] == communicator.rank:
        # Said by one rank, which may not be rank 0.
        where = "" if len(failed) == communicator.size else f"rank {communicator.rank}: "
        failure.args = (f"{where}{failure}",)
        raise failure
    peer = PeerError(f"rank {failed[0]} failed")
    peer.exit_code = int(codes[failed[0]])
    raise peer


def ranks_where(condition: bool, communicator: Communicator) -> list[int]:
    """The ranks on which `condition` holds, known to all."""
    return np.flatnonzero(_of_all_ranks(float(condition), communicator)).tolist()


def _of_all_ranks(number: float, communicator: Communicator) -> np.ndarray:
    """The number that each rank gives, by rank."""
    numbers = tf.one_hot(communicator.rank, communicator.size) * float(number)
    return communicator.all_reduce(numbers, "flags").numpy()


def leave_alone(error: LauncherError, communicator: Communicator) -> NoReturn:
    """Ends this rank, and with it the job, over an error that the others do not have.

    They wait in a collective for this rank, and an orderly exit would wait for them.
    """
    if communicator.size == 1:
        raise error
    _log.error("%s", error)
    print(f"launcher.train: rank {communicator.rank}: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


def broadcast_json(value: Any, communicator: Communicator, root: int = 0) -> Any:
    """The value of rank `root`, which must be JSON, on every rank."""
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(communicator.broadcast([tf.constant(len(content), tf.int64)], root)[0])
    # Ranks hold buffers of one length, whatever they themselves would have said.
    buffer = np.zeros(length, np.uint8)
    if communicator.rank == root:
        buffer[:] = content
    return json.loads(communicator.broadcast([tf.constant(buffer)], root)[0].numpy().tobytes())


def agree_on_output(config: TrainConfig, communicator: Communicator) -> Path:
    """The output directory, the same on every rank, made."""
    given = config.output or os.environ.get("LAUNCHER_RUN_DIR")
    if is_elastic():
        # A rank that joins later meets the others nowhere but where they wait for it.
        if given is None:
            raise UsageError("an elastic job needs --output: ranks that join later must know it")
        return _made(Path(given))
    if given is None:
        name = f"runs/train-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        given = broadcast_json(name, communicator)
    return together(communicator, lambda: _made(Path(given)))


def _made(output: Path) -> Path:
    try:
        (output / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write to the output directory {output}: {error.strerror}"
        ) from error
    return output


def weights_digest(variables: list[Any]) -> str:
    """SHA-256 over all values: equal on two ranks only if every bit is."""
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(np.ascontiguousarray(variable).tobytes())
    return digest.hexdigest()
