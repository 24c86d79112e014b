"""Checkpoints: the whole state of a run in one file, written atomically.

A file is a zip of raw arrays (numpy's npz). Its members carry checksums, so that damage is
detected, and reading it never executes code.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher import strict_json
from launcher.atomic import WriteError, replace_file
from launcher.errors import UsageError

_META = "meta"
# RuntimeError: one flipped bit makes a zip member look encrypted or otherwise compressed.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    KeyError,
    ValueError,
    RuntimeError,
    TypeError,
    OverflowError,
)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two steps.

    Attributes:
        step: Number of optimizer steps done.
        meta: JSON: loop state, world size, options, names of the variables.
        arrays: Values of all variables, in the order of `meta["variables"]`.
        path: The file it was read from; None before it is saved.
    """

    step: int
    meta: dict[str, Any]
    arrays: Sequence[np.ndarray]
    path: Path | None = None


class CheckpointStore:
    """The checkpoints of one run; only rank 0 writes them.

    Args:
        directory: Created with the first checkpoint.
        keep: Number of latest checkpoints to keep.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self._keep = keep

    def paths(self) -> list[Path]:
        """The checkpoint files, oldest first."""
        return sorted(self.directory.glob("step-*.npz"))

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint and removes all but the latest `keep`.

        Raises:
            WriteError: The file cannot be written; the older checkpoints remain, and no partial
                file is left.
        """
        path = self.directory / f"step-{checkpoint.step:010d}.npz"
        members = {f"a{index:05d}": array for index, array in enumerate(checkpoint.arrays)}
        meta = {
            **checkpoint.meta,
            "step": checkpoint.step,
            # Members are raw bytes because numpy's format cannot represent bfloat16.
            "layout": [[array.dtype.name, list(array.shape)] for array in checkpoint.arrays],
        }
        members = {name: np.frombuffer(a.tobytes(), np.uint8) for name, a in members.items()}
        members[_META] = np.frombuffer(strict_json.dumps(meta).encode(), np.uint8)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda file: np.savez(file, allow_pickle=False, **members))
        except OSError as error:
            raise WriteError(path, error) from error
        for old in self.paths()[: -self._keep]:
            old.unlink()
        return path

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The latest intact checkpoint, and a warning for each damaged one that was skipped."""
        warnings: list[str] = []
        for path in reversed(self.paths()):
            try:
                return _read(path), warnings
            except _DAMAGE as error:
                warnings.append(f"the checkpoint {path} is damaged ({error}): skipped")
        return None, warnings


def _read(path: Path) -> Checkpoint:
    # Opened here because numpy does not close a file that turns out to be damaged.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        meta = json.loads(file[_META].tobytes())
        arrays = [
            np.frombuffer(file[f"a{index:05d}"].tobytes(), _dtype(name)).reshape(shape)
            for index, (name, shape) in enumerate(meta.pop("layout"))
        ]
    return Checkpoint(meta["step"], meta, arrays, path)


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        from ml_dtypes import bfloat16  # a dependency of TensorFlow

        return np.dtype(bfloat16)
    return np.dtype(name)


def check_fits(checkpoint: Checkpoint, variables: Sequence[Any]) -> None:
    """Checks that a checkpoint belongs to this model and optimizer.

    Raises:
        UsageError: It does not; the message names the first variable that differs.
    """
    saved = [
        (name, array.shape)
        for name, array in zip(checkpoint.meta["variables"], checkpoint.arrays, strict=True)
    ]
    expected = [(variable.path, tuple(variable.shape)) for variable in variables]
    for ours, theirs in zip(expected, saved, strict=False):
        if ours != theirs:
            raise UsageError(
                f"the checkpoint {checkpoint.path} belongs to another model or optimizer: expected "
                f"{ours[0]} {ours[1]}. Received: {theirs[0]} {theirs[1]}"
            )
    if len(expected) != len(saved):
        raise UsageError(
            f"the checkpoint {checkpoint.path} belongs to another model or optimizer: expected "
            f"{len(expected)} variables. Received: {len(saved)}"
        )
