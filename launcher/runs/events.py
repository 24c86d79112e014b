"""The events of a job, as plain data. An observer is a function of one event.

The run writer, the terminal and the metrics are observers; the supervisor only calls them.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal[
    "run",  # the run begins: id, directory, ranks, command
    "started",  # an attempt begins
    "rank_up",  # pid, host
    "output",  # one line of a rank or of the transport: stream, text
    "beat",  # phase, step, numbers
    "checkpoint",  # step
    "rank_ended",  # exit_code, asked (whether the launcher ended it)
    "failed",  # the cause of an attempt's failure
    "restarting",  # number of the next attempt, seconds to wait
    "stopping",  # a stop was requested: signal
    "warning",  # text
    "done",  # result, exit_code, seconds
]


@dataclass(frozen=True)
class Event:
    """`time` is in seconds since the epoch; `rank` is None for the whole job."""

    kind: Kind
    attempt: int = 0
    rank: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def as_json(self) -> dict[str, Any]:
        content: dict[str, Any] = {"time": round(self.time, 3), "event": self.kind}
        content["attempt"] = self.attempt
        if self.rank is not None:
            content["rank"] = self.rank
        return content | dict(self.details)


Observer = Callable[[Event], None]
