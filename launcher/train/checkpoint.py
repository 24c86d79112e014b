"""Checkpoints: the whole state of a run in one file that is complete or not there.

A file is a zip of raw arrays (numpy's npz) whose members carry checksums, so a damaged one is known
as such; it holds nothing that is executed on reading.
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
# RuntimeError: a single bit makes a member of a zip seem encrypted, or compressed in another way.
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
    """The state at the edge of a step.

    Attributes:
        step: Optimizer steps done.
        meta: Position, world size and what else is JSON.
        arrays: Values of all variables, in the order of `meta["variables"]`.
        path: The file it came from, None before it is saved.
    """

    step: int
    meta: dict[str, Any]
    arrays: Sequence[np.ndarray]
    path: Path | None = None


class CheckpointStore:
    """The checkpoints of one run in a directory; only one rank writes.

    Args:
        directory: Made when the first one is saved.
        keep: How many of the latest stay.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self._keep = keep

    def paths(self) -> list[Path]:
        """The files, oldest first."""
        return sorted(self.directory.glob("step-*.npz"))

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes one and removes all but the latest `keep`.

        Raises:
            WriteError: It cannot be written, of which no trace is left; the older ones stand.
        """
        path = self.directory / f"step-{checkpoint.step:010d}.npz"
        members = {f"a{index:05d}": array for index, array in enumerate(checkpoint.arrays)}
        meta = {
            **checkpoint.meta,
            "step": checkpoint.step,
            # Raw bytes: numpy's own format has no name for bfloat16.
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
        """The latest sound checkpoint, and what is to be said of damaged ones passed over."""
        warnings: list[str] = []
        for path in reversed(self.paths()):
            try:
                return _read(path), warnings
            except _DAMAGE as error:
                warnings.append(f"the checkpoint {path} is damaged ({error}): passed over")
        return None, warnings


def _read(path: Path) -> Checkpoint:
    # Opened here: numpy forgets to close a file that turns out to be damaged.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        meta = json.loads(file[_META].tobytes())
        arrays = [
            np.frombuffer(file[f"a{index:05d}"].tobytes(), _dtype(name)).reshape(shape)
            for index, (name, shape) in enumerate(meta.pop("layout"))
        ]
    return Checkpoint(meta["step"], meta, arrays, path)


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        from ml_dtypes import bfloat16  # comes with TensorFlow

        return np.dtype(bfloat16)
    return np.dtype(name)


def check_fits(checkpoint: Checkpoint, variables: Sequence[Any]) -> None:
    """Refuses a checkpoint of another model or optimizer.

    Raises:
        UsageError: Names the first variable that differs.
    """
    saved = [
        (name, array.shape)
        for name, array in zip(checkpoint.meta["variables"], checkpoint.arrays, strict=True)
    ]
    ours = [(variable.path, tuple(variable.shape)) for variable in variables]
    for mine, theirs in zip(ours, saved, strict=False):
        if mine != theirs:
            raise UsageError(
                f"the checkpoint {checkpoint.path} is of another model or optimizer: expected "
                f"{mine[0]} {mine[1]}. Received: {theirs[0]} {theirs[1]}"
            )
    if len(ours) != len(saved):
        raise UsageError(
            f"the checkpoint {checkpoint.path} is of another model or optimizer: expected "
            f"{len(ours)} variables. Received: {len(saved)}"
        )
