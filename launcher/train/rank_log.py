"""The log of a rank: everything that Python logs, in OUTPUT/logs/rank-N.log."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.runs.logs import RankLog
from syncbn import native
from syncbn.communicators import Communicator
from syncbn.fingerprints import fingerprint

_log = logging.getLogger(__name__)


class _RankLogHandler(logging.Handler):
    """Writes records to a log. On a full disk lines are dropped, and the rank continues."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._log = RankLog(path)

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(self.format(record))


def start_rank_log(output: Path, communicator: Communicator) -> None:
    """Sends what this process logs, from INFO on, to the log of its rank."""
    handler = _RankLogHandler(output / "logs" / f"rank-{communicator.rank}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    _log.info(
        "rank %d of %d over %s, process %d",
        communicator.rank,
        communicator.size,
        communicator.name,
        os.getpid(),
    )
    _log.info("statistics by %s, summed over %s", native.status(), communicator.transport)


def implementation(communicator: Communicator) -> str:
    """How layers compute statistics and, unless by the backend itself, sum them; in a few words."""
    brief = native.status().brief
    if communicator.transport == communicator.name:
        return brief
    return f"{brief}, sums over {communicator.transport}"


def log_fingerprint(variables: Sequence[Any]) -> None:
    """Logs a checksum of all values, by which runs and ranks can be compared."""
    _log.info("weights %08x", fingerprint(variables))
