"""Encoded images in folders and in TFRecord files, whole and damaged."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from launcher.train.data import DataError, load_dataset


def _png(red: int) -> bytes:
    image = np.zeros((10, 12, 3), np.uint8)
    image[..., 0] = red
    return bytes(tf.io.encode_png(image).numpy())


def _folder(root: Path) -> None:
    for part, count in (("train", 4), ("validation", 2)):
        for label, name in enumerate(["cat", "dog"]):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                (root / part / name / f"{index}.png").write_bytes(_png(255 * label))


def test_a_folder_of_images(tmp_path: Path) -> None:
    _folder(tmp_path)
    data = load_dataset("folder", tmp_path, image_size=8)
    assert (data.shape, data.classes, len(data.train), len(data.validation)) == ((8, 8, 3), 2, 8, 4)
    features, labels = data.train.read(np.array([0, 7]))
    assert labels.tolist() == [0, 1]
    np.testing.assert_allclose(features[:, 3, 3, 0], [-1, 1], atol=1e-6)
    assert data.train.read(np.array([], np.int64))[0].shape == (0, 8, 8, 3)
    # The same images without train/ and validation/ above them are split.
    whole = load_dataset("folder", tmp_path / "train", image_size=8, validation_part=0.25)
    assert (len(whole.train), len(whole.validation)) == (6, 2)


def test_a_bad_image_is_named_or_skipped(tmp_path: Path) -> None:
    _folder(tmp_path)
    bad = tmp_path / "train" / "dog" / "2.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(DataError, match=r"dog/2\.png cannot be read as an image"):
        load_dataset("folder", tmp_path, image_size=8).train.read(np.arange(8))
    data = load_dataset("folder", tmp_path, image_size=8, skip_bad_records=True)
    assert (len(data.train), data.skipped) == (7, 1)
    data.train.read(np.arange(7))


@pytest.mark.timeout(20)
def test_what_is_no_file_is_an_error_or_skipped(tmp_path: Path) -> None:
    _folder(tmp_path)
    (tmp_path / "train" / "dog" / "more.png").mkdir()  # a directory of that name is looked into
    (tmp_path / "train" / "dog" / "more.png" / "7.png").write_bytes(_png(3))
    (tmp_path / "train" / ".cache").mkdir()
    assert len(load_dataset("folder", tmp_path, image_size=8).train) == 9
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.png")
    with pytest.raises(DataError, match=r"cat/pipe\.png is not a regular file"):
        load_dataset("folder", tmp_path, image_size=8)
    data = load_dataset("folder", tmp_path, image_size=8, skip_bad_records=True)
    assert (len(data.train), data.skipped) == (9, 1)


def test_a_held_out_class_without_training_samples_is_an_error(tmp_path: Path) -> None:
    _folder(tmp_path)
    (tmp_path / "validation" / "emu").mkdir()
    with pytest.raises(DataError, match=r"no other classes than .* Received also: emu"):
        load_dataset("folder", tmp_path, image_size=8)


def _example(image: bytes, label: int) -> bytes:
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _tfrecord(path: Path, damage: bool = False) -> None:
    starts = []
    with tf.io.TFRecordWriter(str(path)) as writer:
        for index in range(6):
            writer.write(_example(_png(50 * index), index % 3))
            writer.flush()
            starts.append(path.stat().st_size)
    if damage:
        content = bytearray(path.read_bytes())
        content[starts[1] + 40] ^= 0xFF  # within the data of record 2
        path.write_bytes(content)


def test_tfrecord_files(tmp_path: Path) -> None:
    _tfrecord(tmp_path / "train-0.tfrecord")
    _tfrecord(tmp_path / "validation-0.tfrecord")
    data = load_dataset("tfrecord", tmp_path, image_size=8)
    assert (data.shape, data.classes, len(data.train), len(data.validation)) == ((8, 8, 3), 3, 6, 6)
    features, labels = data.train.read(np.array([4, 1]))
    assert labels.tolist() == [1, 1]
    np.testing.assert_allclose(features[:, 0, 0, 0], [200 / 127.5 - 1, 50 / 127.5 - 1], atol=1e-5)


@pytest.mark.parametrize("label", [-1, 2**40])
def test_an_invalid_label_is_named_or_skipped(tmp_path: Path, label: int) -> None:
    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in (0, 1, label, 1):
            writer.write(_example(_png(9), number))
    with pytest.raises(DataError, match=rf"record 2: expected a label from 0.*Received: {label}"):
        load_dataset("tfrecord", path)
    assert load_dataset("tfrecord", path, skip_bad_records=True).skipped == 1


def test_a_damaged_record_is_named_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    _tfrecord(path, damage=True)
    with pytest.raises(DataError, match=r"a\.tfrecord, record 2 is damaged"):
        load_dataset("tfrecord", path)
    data = load_dataset("tfrecord", path, image_size=8, skip_bad_records=True, validation_part=0.2)
    assert (len(data.train), len(data.validation), data.skipped) == (4, 1, 1)
    data.train.read(np.arange(4))
    path.write_bytes(path.read_bytes()[:-10])  # and the last one cut off
    assert load_dataset("tfrecord", path, skip_bad_records=True).skipped == 2
