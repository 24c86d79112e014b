"""Parses the text of flags whose value is a list or a table."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.errors import SpecError, UsageError


def hosts(text: str) -> list[dict[str, Any]]:
    """`h1:4,h2` as fields of hosts; a host without a number has one slot. Raises SpecError."""
    found = []
    for entry in text.split(","):
        name, colon, slots = entry.strip().rpartition(":")
        if not colon:
            name, slots = entry.strip(), "1"
        if not name or not _is_count(slots):
            raise SpecError(f"hosts: expected NAME:SLOTS,NAME:SLOTS. Received: {text!r}")
        found.append({"name": name, "slots": int(slots)})
    return found


def read_hostfile(path: Path) -> list[dict[str, Any]]:
    """Lines of `NAME slots=N`, as mpirun and horovodrun read them. Raises SpecError."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise SpecError(f"hostfile {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError(
            f"hostfile {path}: expected lines of NAME slots=N. Received: binary data"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        parts = line.partition("#")[0].split()
        if not parts:
            continue
        slots = parts[1].removeprefix("slots=") if len(parts) == 2 else "1"
        if len(parts) > 2 or not _is_count(slots):
            raise SpecError(f"hostfile {path}, line {number}: expected NAME slots=N: {line!r}")
        found.append({"name": parts[0], "slots": int(slots)})
    return found


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def words(text: str) -> list[str]:
    """A command, split as a shell does."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise SpecError(
            f"--ssh: expected a command such as 'ssh -p 2222' ({error}): {text!r}"
        ) from None


def codes(text: str) -> list[int]:
    """`1,137`."""
    try:
        return [int(code) for code in text.split(",")]
    except ValueError:
        raise SpecError(f"--restart-codes: expected numbers such as 1,137: {text!r}") from None


def labels(entries: Sequence[str]) -> dict[str, str]:
    """`LABEL=VALUE`, each."""
    return dict(_pair(entry) for entry in entries)


def volumes(entries: Sequence[str]) -> list[dict[str, Any]]:
    """`CLAIM:/PATH` or `CLAIM:/PATH:ro`, each."""
    return [_volume(entry) for entry in entries]


def _pair(label: str) -> tuple[str, str]:
    name, equals, value = label.partition("=")
    if not equals:
        raise UsageError(f"--node-selector: expected LABEL=VALUE. Received: {label!r}")
    return name, value


def _volume(entry: str) -> dict[str, Any]:
    claim, _, rest = entry.partition(":")
    path, _, mode = rest.partition(":")
    if not path or mode not in {"", "ro"}:
        raise UsageError(f"--volume: expected CLAIM:/PATH or CLAIM:/PATH:ro. Received: {entry!r}")
    return {"claim": claim, "path": path, "read_only": mode == "ro"}
