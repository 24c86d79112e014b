"""The log of one rank in one attempt: written, and read while it grows.

It has whole lines and a size limit; one older file is kept.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

LIMIT_BYTES = 32 * 1024 * 1024


class RankLog:
    """Appends lines to `path`; at the limit the file becomes `path.1` and a new one begins.

    A full or missing disk does not stop the job: lines are dropped and counted, and writing resumes
    once there is space. A line is written whole or not at all.
    """

    def __init__(self, path: Path, limit: int = LIMIT_BYTES) -> None:
        self._path = path
        self._limit = limit
        self._descriptor: int | None = None
        self._size = 0
        self.dropped = 0

    def write(self, line: str) -> OSError | None:
        """Appends one line. Returns the error if the line was dropped."""
        data = line.encode(errors="replace") + b"\n"
        try:
            if self._descriptor is None:
                self._open()
            elif self._size + len(data) > self._limit:
                self._rotate()
            append_whole(self._descriptor, data)  # type: ignore[arg-type]
        except OSError as error:
            self.dropped += 1
            return error
        self._size += len(data)
        return None

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o644)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        self.close()
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._open()


class LogReader:
    """Reads the whole lines of one log as it grows, its older file first, across rotations."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._rest = ""

    def lines(self) -> Iterator[str]:
        """Whole lines written since the last call."""
        older = self._path.with_name(self._path.name + ".1")
        if self._file is None:
            if older.exists():
                yield from older.read_text(errors="replace").splitlines()
            self._file = _open(self._path)
        while self._file is not None:
            yield from self._new_lines(self._file)
            if not self._rotated(self._file):
                return
            yield from self._new_lines(self._file)
            self._file.close()
            self._file = _open(self._path)

    def _new_lines(self, file: TextIO) -> Iterator[str]:
        *lines, self._rest = (self._rest + file.read()).split("\n")
        yield from lines

    def _rotated(self, file: TextIO) -> bool:
        try:
            return Path(f"/proc/self/fd/{file.fileno()}").stat().st_ino != self._path.stat().st_ino
        except OSError:
            return False


def append_whole(descriptor: int, data: bytes) -> None:
    """Appends all of `data` or nothing: a partial write to a full disk is truncated."""
    before = os.fstat(descriptor).st_size
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        if written:
            os.ftruncate(descriptor, before)
        raise


def _open(path: Path) -> TextIO | None:
    try:
        return open(path, errors="replace")
    except OSError:
        return None
