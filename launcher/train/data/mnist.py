"""MNIST and data sets in its formats: four IDX files (optionally .gz), or mnist.npz."""

import gzip
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from launcher.train.data.dataset import (
    DataError,
    DataSet,
    check_labels,
    read_regular,
    standardized,
)

_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def load(path: Path) -> DataSet:
    """Reads a directory of IDX files, or an npz file.

    Raises:
        DataError: Names the file.
    """
    arrays = _read_npz(path) if path.suffix == ".npz" else _read_directory(path)
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        check_labels(labels, None, f"{path}, {part} part")
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(
                f"{path}: expected images (n, height, width) and labels (n,) in its {part} part. "
                f"Received: {images.shape} and {labels.shape}"
            )
    return standardized(
        "mnist",
        (arrays["x_train"][..., np.newaxis], arrays["y_train"]),
        (arrays["x_test"][..., np.newaxis], arrays["y_test"]),
        classes=int(max(arrays["y_train"].max(), arrays["y_test"].max())) + 1,
    )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a regular file")
    try:
        # Opened here because numpy does not close a file that turns out to be damaged.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in _FILES}
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except KeyError as error:
        raise DataError(f"{path}: expected arrays {', '.join(_FILES)} ({error.args[0]})") from error
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _read_directory(directory: Path) -> dict[str, np.ndarray]:
    if not directory.is_dir():
        raise DataError(f"{directory} is neither a directory of IDX files nor an npz file")
    return {name: _read_idx(directory, file) for name, file in _FILES.items()}


def _read_idx(directory: Path, name: str) -> np.ndarray:
    """Big-endian: two zero bytes, 8 (unsigned bytes), number of axes, their lengths, data."""
    path = directory / name
    try:
        if path.exists():
            content = read_regular(path)
        else:
            path = directory / f"{name}.gz"
            content = gzip.decompress(read_regular(path))
    except FileNotFoundError as error:
        raise DataError(f"{directory / name} (or .gz) does not exist") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes")
    axes = content[3]
    start = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) - start != int(np.prod(shape)):
        raise DataError(
            f"{path} is damaged: expected {int(np.prod(shape))} bytes for {shape}. "
            f"Received: {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
