"""Files that are whole or absent: written under another name, synced to disk, renamed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces `path` by what `write` puts into the file it is given.

    A crash at any moment leaves either the old file or the new one.
    """
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # The renaming itself must survive a power cut too.
    finally:
        os.close(directory)
