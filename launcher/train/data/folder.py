"""A directory of images, one subdirectory per class, optionally in train/ and validation/."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.train.data.dataset import (
    DataError,
    DataSet,
    Examples,
    Part,
    hold_out,
    read_regular,
)
from launcher.train.data.images import (
    CHANNELS,
    UndecodableError,
    decode,
    decode_all,
    stacked,
)

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif"}
_HELD_OUT = ("validation", "val", "test")
_DEFAULT_SIDE = 64


@dataclass(frozen=True)
class ImageFiles(Examples):
    """Image files, read and decoded on demand."""

    paths: list[Path]
    labels: np.ndarray
    side: int

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        paths = [self.paths[index] for index in indices]
        images = decode_all([_content(path) for path in paths], self.side)
        for path, image in zip(paths, images, strict=True):
            if isinstance(image, UndecodableError):
                raise DataError(
                    f"{path} cannot be read as an image ({image}): "
                    "repair or remove it, or use --skip-bad-records"
                )
        sound = [image for image in images if isinstance(image, np.ndarray)]
        return stacked(sound, self.side), self.labels[indices]


def load(
    path: Path, image_size: int | None, validation_part: float, skip_bad_records: bool
) -> DataSet:
    """Lists the images below `path`; labels number the class directories in alphabetical order.

    Raises:
        DataError: The directory is missing or holds no images.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a directory")
    held = next((path / name for name in _HELD_OUT if (path / name).is_dir()), None)
    side = image_size or _DEFAULT_SIDE
    split = held is not None and (path / "train").is_dir()
    classes = _classes(path / "train" if split else path)
    train, skipped = _list(path / "train" if split else path, classes, side, skip_bad_records)
    shape = (side, side, CHANNELS)
    if split and held is not None:
        if unknown := sorted(set(_directories(held)) - set(classes)):
            raise DataError(
                f"{held}: expected no other classes than {path / 'train'} has. "
                f"Received also: {', '.join(unknown[:5])}"
            )
        validation, more = _list(held, classes, side, skip_bad_records)
        return DataSet("folder", train, validation, shape, len(classes), skipped + more)
    numbers, out = hold_out(len(train), validation_part)
    return DataSet("folder", Part(train, numbers), Part(train, out), shape, len(classes), skipped)


def _classes(directory: Path) -> list[str]:
    names = _directories(directory)
    if len(names) < 2:
        raise DataError(f"{directory}: expected one directory per class. Received: {names}")
    return names


def _directories(directory: Path) -> list[str]:
    """Names of the subdirectories that are not hidden."""
    return sorted(p.name for p in directory.iterdir() if p.is_dir() and p.name[0] != ".")


def _list(
    directory: Path, classes: list[str], side: int, skip_bad_records: bool
) -> tuple[ImageFiles, int]:
    """The image files of each class, and how many unreadable ones were skipped."""
    paths, labels, skipped = [], [], 0
    for label, name in enumerate(classes):
        for path in sorted((directory / name).rglob("*")):
            if path.suffix.lower() not in _ENDINGS or path.is_dir():
                continue
            if not skip_bad_records and path.exists() and not path.is_file():
                raise DataError(
                    f"{path} is not a regular file (a pipe, socket or device): remove it, or use "
                    "--skip-bad-records"
                )
            if skip_bad_records and not _is_sound(path, side):
                skipped += 1
                continue
            paths.append(path)
            labels.append(label)
    if not paths:
        raise DataError(f"{directory} contains no images ({', '.join(sorted(_ENDINGS))})")
    return ImageFiles(paths, np.asarray(labels, np.int32), side), skipped


def _is_sound(path: Path, side: int) -> bool:
    try:
        decode(read_regular(path), side)
    except (UndecodableError, OSError, DataError):
        return False
    return True


def _content(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
