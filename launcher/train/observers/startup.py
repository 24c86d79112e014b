"""The time from the start of the process to its first step, in parts."""

import logging
import os
import time
from typing import Any

from launcher.agent.tree import started_at
from launcher.train.observers.base import Observer, StepDone

_log = logging.getLogger(__name__)


class StartupTimes(Observer):
    """Measures each part of the start-up from the end of the previous one.

    The training program calls `done` after each part; the first step, which traces and compiles,
    is the last one. A step of a later training loop, as of an elastic job, does not count.

    Attributes:
        began: When the operating system started this process, in seconds since the epoch.
        complete: Whether the first step has ended.
    """

    what = "the start-up time"

    def __init__(self) -> None:
        age = _age_of_process()
        self.began = time.time() - age
        self.complete = False
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter() - age

    def done(self, part: str) -> None:
        """Ends a part."""
        now = time.perf_counter()
        self._seconds[part] = now - self._last
        self._last = now

    def on_step(self, step: StepDone) -> None:
        if not self.complete:
            self.complete = True
            self.done("first_step")
            _log.info("first step %.2f s after the start: %s", sum(self._seconds.values()), self)

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.2f} s" for part, seconds in self._seconds.items())

    def summary(self) -> dict[str, Any] | None:
        """For summary.json: `began`, `seconds` by part and their `total`; None without a step."""
        if not self.complete:
            return None
        total = sum(self._seconds.values())
        return {"began": self.began, "seconds": dict(self._seconds), "total": total}


def _age_of_process() -> float:
    """Seconds since the operating system started this process; 0 where it does not tell.

    Time since the start of the machine is exact; the time of day at which the kernel says that the
    machine started is a whole second.
    """
    try:
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_at(os.getpid()))
    except (OSError, AttributeError):
        return 0.0
