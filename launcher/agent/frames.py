"""The line protocol from agents to the supervisor: `mark rank kind payload end newline`.

Frames survive mpirun, which tags lines and may split them: a line without the end mark continues
in the next line of that rank. Lines without the first mark come from the transport itself.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MARK = b"\x1e"
_END = b"\x1f"
_LONGEST_PAYLOAD = 16 * 1024
_MPIRUN_TAG = re.compile(rb"^\[\d+,(\d+)\]<std(?:out|err|diag)>:")
_FRAME = re.compile(_MARK + rb"(-?\d+) (.)(.*)" + _END + rb"$", re.DOTALL)

STDOUT, STDERR, REPORT, TRANSPORT = "o", "e", "r", "t"


@dataclass(frozen=True)
class Frame:
    """`kind` is STDOUT or STDERR (a line of the rank), REPORT (from its agent: `report`), or
    TRANSPORT (a line of ssh or mpirun, with no rank)."""

    rank: int | None
    kind: str
    text: str
    report: dict[str, Any]


def encode_line(rank: int, kind: str, line: bytes) -> bytes:
    """One line of output without its newline; a very long one becomes several frames."""
    line = line.rstrip(b"\r").replace(_MARK, b"?").replace(_END, b"?")
    pieces = range(0, max(1, len(line)), _LONGEST_PAYLOAD)
    prefix = _MARK + f"{rank} {kind}".encode()
    return b"".join(prefix + line[i : i + _LONGEST_PAYLOAD] + _END + b"\n" for i in pieces)


def encode_report(rank: int, **report: object) -> bytes:
    return _MARK + f"{rank} {REPORT}".encode() + json.dumps(report).encode() + _END + b"\n"


class Decoder:
    """Turns the bytes of one pipe, in pieces of any size, into frames."""

    def __init__(self) -> None:
        self._rest = b""
        self._unfinished: dict[bytes, bytes] = {}

    def feed(self, data: bytes) -> Iterator[Frame]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            frame = self._line(line)
            if frame is not None:
                yield frame

    def close(self) -> Iterator[Frame]:
        """The last line, if the transport ended without a newline."""
        if self._rest:
            yield from self.feed(b"\n")

    def _line(self, line: bytes) -> Frame | None:
        tag = _MPIRUN_TAG.match(line)
        source = tag.group(1) if tag else b""
        line = self._unfinished.pop(source, b"") + (line[tag.end() :] if tag else line)
        if line.startswith(_MARK) and not line.endswith(_END):
            self._unfinished[source] = line
            return None
        found = _FRAME.match(line)
        if found is None:
            text = line.decode(errors="replace").rstrip("\r")
            return Frame(None, TRANSPORT, text, {}) if text.strip() else None
        rank, kind, payload = int(found[1]), found[2].decode(), found[3]
        if kind == REPORT:
            return Frame(rank, kind, "", json.loads(payload))
        return Frame(rank, kind, payload.decode(errors="replace"), {})
