"""CIFAR-10, Python version: data_batch_1 to 5 and test_batch.

These files are pickles. The unpickler here accepts plain containers and numpy arrays and refuses
everything else, so that an untrusted file cannot run code.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from launcher.train.data.dataset import (
    DataError,
    DataSet,
    check_labels,
    read_regular,
    standardized,
)

_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module.startswith(("numpy.core.", "numpy._core.")):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def load(path: Path) -> DataSet:
    """Reads the six files in a directory, or in its subdirectory `cifar-10-batches-py`.

    Raises:
        DataError: Names the file.
    """
    inner = path / "cifar-10-batches-py"
    directory = inner if inner.is_dir() else path
    train = [_read(directory / f"data_batch_{number}") for number in range(1, 6)]
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return standardized("cifar10", (images, labels), _read(directory / "test_batch"), classes=10)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) uint8 and labels (n,) int32 of one file."""
    try:
        batch = _ArraysOnly(io.BytesIO(read_regular(path)), encoding="bytes").load()
        data, labels = batch[b"data"], np.asarray(batch[b"labels"])
        check_labels(labels, 10, str(path))
        labels = labels.astype(np.int32)
        # Each image is stored as three color planes.
        images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        if images.dtype != np.uint8 or len(images) != len(labels):
            raise ValueError(f"{len(images)} images of {images.dtype}, {len(labels)} labels")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises any exception
        raise DataError(
            f"{path} is damaged or not a CIFAR-10 batch ({type(error).__name__}: {error})"
        ) from error
    return images, labels
