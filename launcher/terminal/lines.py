"""Plain lines, for pipes, logs and `--quiet`: prefixed by rank, the cause of a failure first."""

import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TextIO

from launcher.runs.events import Event
from launcher.runs.layout import log_path
from launcher.spec import JobSpec
from launcher.terminal.words import (
    cause_lines,
    end_line,
    next_commands,
    restart_line,
    stopping_line,
)

_HELD_SECONDS = 0.5


class Lines:
    """Prints whole lines: `[rank] text` for ranks, `launcher: text` (on stderr) for the job.

    Lines of ranks are held for half a second. When a rank fails, the lines that the others print
    from then on are held until the cause is known, and printed after it with a mark.
    """

    def __init__(self, spec: JobSpec, quiet: bool = False) -> None:
        self._spec = spec
        self._quiet = quiet
        self._width = len(str(spec.ranks - 1))
        self._held: deque[tuple[float, int | None, str, str]] = deque()
        self._lock = threading.RLock()
        self._failing = False
        self._checkpoint: int | None = None
        self._id = ""
        self._directory = ""
        self._stop = threading.Event()
        self._flusher = threading.Thread(target=self._flush_on_time, daemon=True)
        self._flusher.start()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._take(event)

    def close(self) -> None:
        self._stop.set()
        self._flusher.join()
        with self._lock:
            self._release(None)

    def print_own(self, text: str) -> None:
        """Prints one line of the launcher itself."""
        self.print(f"launcher: {text}", sys.stderr)

    def print(self, line: str, stream: TextIO) -> None:
        """Writes one line; a closed terminal or a full disk does not end the job."""
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):
            pass

    def _take(self, event: Event) -> None:
        details = event.details
        if event.kind == "output":
            if not self._quiet:
                line = (time.monotonic(), event.rank, details["stream"], details["text"])
                self._held.append(line)
        elif event.kind == "run":
            self._id, self._directory = details["id"], details["directory"]
            if not self._quiet:
                ranks = f"{self._spec.ranks} rank{'s' * (self._spec.ranks > 1)}"
                reason = f" ({self._spec.backend_reason})" if self._spec.backend_reason else ""
                backend = f"{self._spec.backend}{reason}"
                self.print_own(f"{self._id}: {ranks}, backend {backend}, in {self._directory}")
        elif event.kind == "checkpoint":
            self._checkpoint = details["step"]
        elif event.kind == "rank_ended":
            self._failing |= details["exit_code"] != 0 and not details["asked"]
        elif event.kind == "stopping":
            self.print_own(stopping_line(details["signal"], details["at_once"]))
        elif event.kind == "warning":
            self.print_own(f"warning: {details['text']}")
        elif event.kind == "failed":
            self._failed(event)
        elif event.kind == "restarting":
            most, seconds = self._spec.restart.max_restarts, details["seconds"]
            self.print_own(restart_line(details["next"], most, seconds, self._checkpoint))
        elif event.kind == "done":
            self._release(None)
            self.print_own(end_line(details))
            if not self._quiet:
                output = str(self._spec.output)
                flags = "" if output == "runs" else f" --output {output}"
                for command in next_commands(self._id, flags, running=False):
                    self.print(f"  {command}", sys.stderr)

    def _failed(self, event: Event) -> None:
        log = None
        if event.rank is not None:
            log = str(log_path(Path(self._directory), event.attempt, event.rank))
        for line in cause_lines(event.details, log):
            self.print_own(line) if not line.startswith(" ") else self.print(line, sys.stderr)
        self._release(-1 if event.rank is None else event.rank)
        self._failing = False

    def _release(self, culprit: int | None) -> None:
        """Prints what is held; after a failure the lines of other ranks are marked."""
        while self._held:
            _, rank, stream, text = self._held.popleft()
            if culprit is None:
                self._print_rank(rank, stream, text)
            elif rank != culprit:
                self._print_rank(rank, stream, text, mark=" after the failure")

    def _print_rank(self, rank: int | None, stream: str, text: str, mark: str = "") -> None:
        label = "-" * self._width if rank is None else f"{rank:>{self._width}}"
        self.print(f"[{label}{mark}] {text}", sys.stdout if stream == "stdout" else sys.stderr)

    def _flush_on_time(self) -> None:
        while not self._stop.wait(0.1):
            with self._lock:
                until = time.monotonic() - _HELD_SECONDS
                while self._held and self._held[0][0] < until and not self._failing:
                    self._print_rank(*self._held.popleft()[1:])
