"""The output of the agent: lines of the rank and reports as frames, never blocked by a reader."""

import os
import select
import time

from launcher.agent.frames import STDERR, encode_line, encode_report

_STDOUT = 1
_MOST_UNSENT_BYTES = 1 << 20


class Channel:
    """Frames for one rank on standard output; `raw` output is forwarded unchanged."""

    def __init__(self, rank: int, raw: bool) -> None:
        self._rank = rank
        self._raw = raw
        self._unsent = bytearray()
        self._unfinished: dict[int, bytes] = {}

    @property
    def waiting(self) -> bool:
        """Whether there is something to write once standard output takes it."""
        return bool(self._unsent)

    @property
    def full(self) -> bool:
        """Whether more output of the rank should wait in its own pipe."""
        return len(self._unsent) >= _MOST_UNSENT_BYTES

    def pass_on(self, descriptor: int, pipes: dict[int, str]) -> None:
        """Reads a pipe and forwards its complete lines; removes a closed pipe from `pipes`."""
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return
        kind, rest = pipes[descriptor], self._unfinished.pop(descriptor, b"")
        if not data:
            del pipes[descriptor]
            data = b"\n" if rest else b""
        *lines, self._unfinished[descriptor] = (rest + data).split(b"\n")
        for line in lines:
            self._unsent += line + b"\n" if self._raw else encode_line(self._rank, kind, line)

    def add_line(self, text: str) -> None:
        """Adds a line of the launcher to those of the rank."""
        self._unsent += encode_line(self._rank, STDERR, f"[launcher] {text}".encode())

    def report(self, **report: object) -> None:
        self._unsent += encode_report(self._rank, **report)

    def write(self) -> bool:
        """Writes what standard output takes without blocking; returns whether it took anything."""
        before = len(self._unsent)
        try:
            while self._unsent:
                del self._unsent[: os.write(_STDOUT, self._unsent)]
        except BlockingIOError:
            pass
        except OSError:  # the reader has closed the pipe
            self._unsent.clear()
        return len(self._unsent) < before

    def flush(self, seconds: float) -> None:
        """Writes everything; gives up once the reader has read nothing for `seconds`."""
        limit = time.monotonic() + seconds
        while self._unsent and time.monotonic() < limit:
            if self.write():
                limit = time.monotonic() + seconds
            else:
                select.select([], [_STDOUT], [], 0.1)
