"""Atomic replacement of files: written under another name, synced to disk, renamed."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from launcher import strict_json
from launcher.errors import LauncherError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class WriteError(LauncherError):
    """A file that the job needs cannot be written.

    Attributes:
        full: Whether the disk, or the quota, is full.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        self.full = error.errno in _FULL
        if self.full:
            text = f"disk full: {path} cannot be written ({error.strerror}){_free_space(path)}"
        else:
            text = f"{path} cannot be written: {error.strerror or error}"
        super().__init__(text)


def replace_file(path: Path, write: Callable[[BinaryIO], object], durable: bool = True) -> None:
    """Replaces `path` by what `write` writes to the file object it receives.

    A crash at any moment leaves either the old file or the new one. A failure deletes the temporary
    file, so that its space on a full disk is freed. With `durable` the new file survives a power
    cut.

    Raises:
        OSError: The old file is unchanged.
    """
    temporary = partial(path)
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # The rename must survive a power cut too.
        finally:
            os.close(directory)


def replace_text(path: Path, text: str, durable: bool = True) -> None:
    """The same for text. Raises OSError."""
    replace_file(path, lambda file: file.write(text.encode()), durable)


def replace_json(path: Path, content: Any, indent: int | None = 2, durable: bool = True) -> None:
    """The same for JSON; numbers that are not finite become null. Raises OSError."""
    replace_text(path, strict_json.dumps(content, indent=indent) + "\n", durable)


def partial(path: Path) -> Path:
    """The temporary file to which `path` is written."""
    return path.with_name(f".{path.name}.part")


def remove_partials(*directories: Path) -> None:
    """Removes the temporary files of killed writers; only for the one writer of a directory."""
    for directory in directories:
        for path in directory.glob(".*.part"):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _free_space(path: Path) -> str:
    """The free space on the file system of `path`, after a colon; empty if it is unknown."""
    try:
        usage = shutil.disk_usage(path.parent)
    except OSError:
        return ""
    return f": {usage.free / 1e3:,.0f} kB free of {usage.total / 1e6:,.1f} MB"
