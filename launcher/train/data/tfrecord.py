"""TFRecord files of tf.train.Example, each with an encoded image and an integer label.

Feature names: `image/encoded` or `image`, and `image/class/label` or `label`.
"""

import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from launcher.train.data.dataset import (
    DataError,
    DataSet,
    Examples,
    Part,
    check_labels,
    hold_out,
)
from launcher.train.data.images import (
    CHANNELS,
    UndecodableError,
    decode,
    decode_all,
    stacked,
)

_IMAGE = ("image/encoded", "image")
_LABEL = ("image/class/label", "label")
_DEFAULT_SIDE = 64

# Layout of a record: length (8 bytes), checksum of the length (4), data, checksum of the data (4).
_HEADER, _FOOTER = 12, 4


@dataclass(frozen=True)
class Record:
    """Location of a record: file, number in the file, and byte range of its data."""

    path: Path
    number: int
    start: int
    length: int

    def __str__(self) -> str:
        return f"{self.path}, record {self.number}"


@dataclass(frozen=True)
class Records(Examples):
    """Records, read and decoded on demand."""

    records: list[Record]
    labels: np.ndarray
    side: int

    def __len__(self) -> int:
        return len(self.records)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        records = [self.records[index] for index in indices]
        images = decode_all([_parse(record, _bytes_of(record))[0] for record in records], self.side)
        for record, image in zip(records, images, strict=True):
            if isinstance(image, UndecodableError):
                raise DataError(f"{record}: not an image ({image}); --skip-bad-records skips it")
        sound = [image for image in images if isinstance(image, np.ndarray)]
        return stacked(sound, self.side), self.labels[indices]


def load(
    path: Path, image_size: int | None, validation_part: float, skip_bad_records: bool
) -> DataSet:
    """Indexes a file, or all *.tfrecord* files of a directory; validation* and test* are held out.

    Verifies the checksum of every record once.

    Raises:
        DataError: Names file and record.
    """
    files = sorted(path.glob("*.tfrecord*")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"{path} is neither a TFRecord file nor a directory with *.tfrecord files")
    held = [file for file in files if file.name.startswith(("validation", "val", "test"))]
    side = image_size or _DEFAULT_SIDE
    train, skipped = _index([file for file in files if file not in held], side, skip_bad_records)
    shape = (side, side, CHANNELS)
    if held:
        validation, more = _index(held, side, skip_bad_records)
        classes = int(max(train.labels.max(), validation.labels.max())) + 1
        return DataSet("tfrecord", train, validation, shape, classes, skipped + more)
    numbers, out = hold_out(len(train), validation_part)
    classes = int(train.labels.max()) + 1
    return DataSet("tfrecord", Part(train, numbers), Part(train, out), shape, classes, skipped)


def _index(files: list[Path], side: int, skip_bad_records: bool) -> tuple[Records, int]:
    """The records of the files, and how many unreadable ones were skipped."""
    records, labels, skipped = [], [], 0
    for file in files:
        for record, content in _records(file):
            try:
                if content is None:
                    raise DataError(f"{record} is damaged: its checksum does not match")
                image, label = _parse(record, content)
                check_labels(np.array([label]), None, str(record), first=None)
                if skip_bad_records:
                    decode(image, side)
            except (DataError, UndecodableError) as error:
                if not skip_bad_records:
                    raise DataError(f"{error}; --skip-bad-records skips it") from error
                skipped += 1
                continue
            records.append(record)
            labels.append(label)
    if not records:
        raise DataError(f"no readable record in {', '.join(map(str, files)) or 'training files'}")
    return Records(records, np.asarray(labels, np.int32), side), skipped


def _records(path: Path) -> Iterator[tuple[Record, bytes | None]]:
    """The records of a file; the content is None if the checksum does not match."""
    source, base, number = path, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        while base < path.stat().st_size:
            start = base
            try:
                for content in tf.data.TFRecordDataset(str(source)).as_numpy_iterator():
                    yield Record(path, number, start + _HEADER, len(content)), content
                    start, number = start + _HEADER + len(content) + _FOOTER, number + 1
                return
            except (tf.errors.DataLossError, tf.errors.OutOfRangeError):
                length = _length_at(path, start)
                yield Record(path, number, start + _HEADER, length), None
                # TensorFlow's reader stops there: copy the remainder to a file and read on.
                base, number = start + _HEADER + length + _FOOTER, number + 1
                source = Path(scratch) / "rest"
                with path.open("rb") as whole, source.open("wb") as rest:
                    whole.seek(base)
                    shutil.copyfileobj(whole, rest)


def _length_at(path: Path, start: int) -> int:
    """The length in a header, limited to the remainder of the file."""
    with path.open("rb") as file:
        file.seek(start)
        header = file.read(8)
    rest = path.stat().st_size - start
    length = struct.unpack("<Q", header)[0] if len(header) == 8 else rest
    return int(min(length, rest))


def _bytes_of(record: Record) -> bytes:
    with record.path.open("rb") as file:
        file.seek(record.start)
        return file.read(record.length)


def _parse(record: Record, content: bytes) -> tuple[bytes, int]:
    """The encoded image and the label of one tf.train.Example."""
    try:
        features = tf.train.Example.FromString(content).features.feature
    except Exception as error:  # the error classes differ between protobuf implementations
        raise DataError(f"{record} is not a tf.train.Example ({error})") from error
    image = [v for name in _IMAGE if name in features for v in features[name].bytes_list.value]
    label = [v for name in _LABEL if name in features for v in features[name].int64_list.value]
    if len(image) != 1 or len(label) != 1:
        raise DataError(
            f"{record}: expected one image ({' or '.join(_IMAGE)}) and one label "
            f"({' or '.join(_LABEL)}). Received: {sorted(features)}"
        )
    return image[0], int(label[0])
