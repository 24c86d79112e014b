"""One trainer per output directory: the writer holds a lock that ends with its process.

The lock is a record lock (fcntl), not flock: over NFS the server keeps it for all hosts, and a
child that outlives the trainer does not inherit it. It is lost when this process closes any other
descriptor of the file, so nothing else may open it. Readers of the directory need no lock.
"""

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher import strict_json
from launcher.atomic import remove_partials
from launcher.errors import UsageError
from launcher.train.coordination import together
from launcher.train.environment import is_elastic, launcher_attempt, launcher_run
from launcher.train.observers.base import warn
from syncbn.communicators import Communicator

NAME = ".trainer.lock"

# How long an earlier attempt of the same run may take to end: a file server releases the locks of
# a lost host after up to 90 s.
_PREDECESSOR_SECONDS = 120.0
_POLL_SECONDS = 0.2
_HELD = (errno.EAGAIN, errno.EACCES)


class OutputLock:
    """The lock of one output directory.

    Args:
        output: The directory, which exists.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._path = output / NAME
        self._descriptor: int | None = None

    def settle(self, communicator: Communicator) -> None:
        """Acquires the lock on rank 0, the writer, and releases it on all other ranks.

        A collective call, except in elastic jobs, where the rank of a process may change.

        Raises:
            UsageError: On rank 0: another trainer holds the lock; the message names it.
            PeerError: On all other ranks in this case.
        """
        together(communicator, self.acquire if communicator.rank == 0 else self.release)

    def acquire(self) -> None:
        """Acquires the lock; does nothing if this process holds it already.

        Raises:
            UsageError: Another trainer holds it, or the file cannot be created.
        """
        if self._descriptor is not None:
            return
        began = time.monotonic()
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(
                f"cannot write to the output directory {self._output}: {error.strerror}"
            ) from error
        while (problem := _lock(descriptor)) is not None:
            holder = _read(descriptor)
            if problem.errno not in _HELD:
                warn(
                    f"the file system of {self._output} does not support locks "
                    f"({problem.strerror}): make sure that no other trainer writes there"
                )
                break
            if time.monotonic() - began > _patience(holder):
                os.close(descriptor)
                raise UsageError(
                    f"the output directory {self._output} is in use by another trainer "
                    f"({_describe(holder)}): wait until it ends, or choose another --output"
                )
            time.sleep(_POLL_SECONDS)
        content = strict_json.dumps(_describe_self()).encode()
        with suppress(OSError):  # on a full disk the holder stays anonymous
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
        self._descriptor = descriptor
        remove_partials(self._output, self._output / "checkpoints")

    def release(self) -> None:
        """Releases the lock, if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int) -> OSError | None:
    """Locks the file; returns the error if it cannot."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None


def _describe_self() -> dict[str, Any]:
    run = launcher_run()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "run": None if run is None else run.name,
        "attempt": launcher_attempt(),
        "since": time.time(),
    }


def _read(descriptor: int) -> dict[str, Any]:
    """What the holder has written about itself; empty until it has."""
    with suppress(OSError, ValueError):
        content = json.loads(os.pread(descriptor, 4096, 0))
        if isinstance(content, dict):
            return content
    return {}


def _patience(holder: dict[str, Any]) -> float:
    """How long to wait for an earlier attempt of the same run, or for a lost rank 0."""
    mine = _describe_self()
    same_run = mine["run"] is not None and holder.get("run") == mine["run"]
    if is_elastic() or (same_run and holder.get("attempt") != mine["attempt"]):
        return _PREDECESSOR_SECONDS
    return 0.0 if holder else 1.0


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "not identified"
    words = [f"process {holder.get('pid')} on {holder.get('host')}"]
    if holder.get("run"):
        words.append(f"run {holder['run']}")
    since = holder.get("since")
    if isinstance(since, int | float):
        words.append(f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}")
    return ", ".join(words)
