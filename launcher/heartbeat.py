"""How a rank reports its progress to the supervisor: one small record, overwritten in place.

The rank calls `Heartbeat.from_environment()` once and `beat(...)` every step; its agent, or a
liveness probe, calls `read(path)`.
"""

import json
import math
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

VARIABLE = "LAUNCHER_HEARTBEAT"

# "leaving": another rank has failed or was stopped, and this one ends because of it.
Phase = Literal["starting", "training", "evaluating", "saving", "done", "leaving"]

# One write of a record of constant size: once the file exists it needs no free space, so a full
# disk does not make a healthy rank look dead, and the record is never partial.
_RECORD_BYTES = 512
_SECONDS_BETWEEN_BEATS = 0.2


@dataclass(frozen=True)
class Beat:
    """One record: the phase a rank is in, the last step it finished, and its numbers.

    `saved` is the step of the last checkpoint, that is, of the last "saving" phase that has ended.
    `time` is the wall clock of the rank in seconds since the epoch.
    """

    phase: Phase
    step: int | None
    saved: int | None
    time: float
    numbers: Mapping[str, float] = field(default_factory=dict)


class Heartbeat:
    """Writes the record of one rank; without a path it does nothing, so that callers need no if."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._phase: Phase | None = None
        self._saving: int | None = None
        self._saved: int | None = None
        self._numbers: dict[str, float] = {}
        self._written = 0.0

    @classmethod
    def from_environment(cls) -> "Heartbeat":
        """The heartbeat named by LAUNCHER_HEARTBEAT, or one that does nothing when it is unset."""
        path = os.environ.get(VARIABLE)
        return cls(Path(path) if path else None)

    def beat(self, phase: Phase, step: int | None = None, **numbers: float) -> None:
        """Reports that the rank is in `phase` and has finished `step`; `numbers` are shown in the
        live table until a later call replaces them.

        Cheap enough for every step: between changes of phase at most five records a second are
        written. Never raises if the disk is full or missing: training continues without it.
        """
        if self._path is None:
            return
        now = time.monotonic()
        # JSON has no NaN and no infinity, and the previous value is no longer true.
        for name, value in numbers.items():
            if math.isfinite(value):
                self._numbers[name] = float(value)
            else:
                self._numbers.pop(name, None)
        if phase == self._phase and now - self._written < _SECONDS_BETWEEN_BEATS:
            return
        if self._phase == "saving" != phase:
            self._saved = self._saving
        self._phase, self._written = phase, now
        at = None if step is None else int(step)
        self._saving = at if phase == "saving" else None
        record = encode(Beat(phase, at, self._saved, time.time(), self._numbers))
        try:
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o644)
            os.pwrite(self._descriptor, record, 0)
        except OSError:
            pass


def encode(beat: Beat) -> bytes:
    """The record of 512 bytes: a checksum, JSON, padding. Numbers that do not fit are omitted."""
    numbers = dict(beat.numbers)
    while True:
        content = [beat.phase, beat.step, beat.saved, beat.time, numbers]
        text = json.dumps(content).encode().ljust(_RECORD_BYTES - 9)
        if len(text) == _RECORD_BYTES - 9:
            return b"%08x" % zlib.crc32(text) + text + b"\n"
        numbers.popitem()


def decode(record: bytes) -> Beat | None:
    """The beat in a record, or None if it is empty or was read while being written."""
    text = record[8 : _RECORD_BYTES - 1]
    if record[:8] != b"%08x" % zlib.crc32(text):
        return None
    return Beat(*json.loads(text))


def read(path: Path) -> Beat | None:
    """The last beat in the file, or None while there is none."""
    try:
        with open(path, "rb") as file:
            return decode(file.read(_RECORD_BYTES))
    except OSError:
        return None
