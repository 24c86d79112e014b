"""Every kind of data set, written as its makers write it, whole and damaged."""

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from launcher.errors import UsageError
from launcher.train.config import load_config
from launcher.train.data import DataError, DataSet, batches, load_dataset
from launcher.train.data.order import epoch_order, rank_shares, steps_left

RANDOM = np.random.default_rng(5)


def _load(dataset: str, path: Path | None = None, **options: Any) -> DataSet:
    return load_dataset(load_config({"dataset": dataset, "data": path, **options}))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ranks_share_an_epoch_without_overlap(size: int) -> None:
    order = epoch_order(103, seed=4, epoch=2)
    shares = [list(rank_shares(order, 0, 8, rank, size)) for rank in range(size)]
    assert {len(share) for share in shares} == {steps_left(103, 0, 8, size)}
    for step in zip(*shares, strict=True):
        rows = [len(part) for part in step]
        assert max(rows) - min(rows) <= 1
        assert min(rows) > 0
    everything = np.concatenate([part for share in shares for part in share])
    assert sorted(everything.tolist()) == list(range(103))
    assert not np.array_equal(order, epoch_order(103, seed=4, epoch=3))
    np.testing.assert_array_equal(order, epoch_order(103, seed=4, epoch=2))


def test_a_global_batch_does_not_depend_on_the_world_size() -> None:
    order = epoch_order(100, seed=0, epoch=0)
    one = list(rank_shares(order, 40, 24, 0, 1))
    three = [list(rank_shares(order, 40, 8, rank, 3)) for rank in range(3)]
    for step, batch in enumerate(one):
        joined = np.concatenate([share[step] for share in three])
        np.testing.assert_array_equal(joined, batch)


def test_digits_are_real_standardized_and_split_for_good() -> None:
    first, second = _load("digits", seed=1), _load("digits", seed=2)
    assert (len(first.train), len(first.validation)) == (1438, 359)
    features, labels = first.train.read(np.arange(1438))
    assert abs(features.mean()) < 1e-3
    assert abs(features.std() - 1) < 1e-3
    assert set(labels.tolist()) == set(range(10))
    np.testing.assert_array_equal(
        first.validation.read(np.arange(10))[0], second.validation.read(np.arange(10))[0]
    )


def test_the_reader_hands_on_its_error_and_stops_when_left() -> None:
    digits = _load("digits").train
    with batches(digits, [np.arange(3), np.array([10**6])]) as ready:
        assert len(next(ready)[1]) == 3
        with pytest.raises(IndexError):
            next(ready)
    with batches(digits, (np.arange(2) for _ in range(10**9))) as ready:
        next(ready)


def _mnist(directory: Path, compress: bool = False) -> dict[str, np.ndarray]:
    arrays = {
        "train-images-idx3-ubyte": RANDOM.integers(0, 256, (20, 5, 4), np.uint8),
        "train-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": RANDOM.integers(0, 256, (6, 5, 4), np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(6, dtype=np.uint8),
    }
    for name, array in arrays.items():
        head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        content = head + array.tobytes()
        if compress:
            (directory / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (directory / name).write_bytes(content)
    return arrays


@pytest.mark.parametrize("compress", [False, True])
def test_mnist_in_idx_files(tmp_path: Path, compress: bool) -> None:
    arrays = _mnist(tmp_path, compress)
    data = _load("mnist", tmp_path)
    assert (data.shape, data.classes, len(data.train), len(data.validation)) == (
        (5, 4, 1),
        10,
        20,
        6,
    )
    features, labels = data.train.read(np.arange(20))
    images = arrays["train-images-idx3-ubyte"].astype(np.float64)
    expected = (images - images.mean()) / images.std()
    np.testing.assert_allclose(features[..., 0], expected, atol=1e-5)
    np.testing.assert_array_equal(labels, arrays["train-labels-idx1-ubyte"])


def test_mnist_in_an_npz_file(tmp_path: Path) -> None:
    arrays = list(_mnist(tmp_path).values())
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=arrays[0], y_train=arrays[1], x_test=arrays[2], y_test=arrays[3])
    assert len(_load("mnist", path).train) == 20
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"mnist\.npz is damaged"):
        _load("mnist", path)


def test_damaged_and_missing_mnist_files_are_named(tmp_path: Path) -> None:
    _mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-3])
    with pytest.raises(DataError, match="train-labels-idx1-ubyte is damaged: expected 20 bytes"):
        _load("mnist", tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte \(or .gz\) does not exist"):
        _load("mnist", tmp_path)
    with pytest.raises(UsageError, match="needs --data"):
        _load("mnist")


def _cifar(directory: Path) -> np.ndarray:
    images = RANDOM.integers(0, 256, (4, 3072), np.uint8)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        batch = {b"data": images, b"labels": [0, 1, 2, 9], b"batch_label": b"x"}
        (directory / name).write_bytes(pickle.dumps(batch, protocol=2))
    return images


def test_cifar10_batches(tmp_path: Path) -> None:
    images = _cifar(tmp_path)
    data = _load("cifar10", tmp_path)
    assert (data.shape, data.classes, len(data.train), len(data.validation)) == (
        (32, 32, 3),
        10,
        20,
        4,
    )
    features, labels = data.train.read(np.array([2]))
    plane = images[2].reshape(3, 32, 32).astype(np.float64)
    expected = (plane.transpose(1, 2, 0) - images.mean()) / images.std()
    np.testing.assert_allclose(features[0], expected, atol=1e-5)
    assert labels.tolist() == [2]


def test_a_cifar10_file_cannot_run_anything(tmp_path: Path) -> None:
    _cifar(tmp_path)
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (witness,))

    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(DataError, match=r"data_batch_3 is damaged.*it asks for"):
        _load("cifar10", tmp_path)
    assert not witness.exists()


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
    data = _load("folder", tmp_path, image_size=8)
    assert (data.shape, data.classes, len(data.train), len(data.validation)) == ((8, 8, 3), 2, 8, 4)
    features, labels = data.train.read(np.array([0, 7]))
    assert labels.tolist() == [0, 1]
    np.testing.assert_allclose(features[:, 3, 3, 0], [-1, 1], atol=1e-6)
    assert data.train.read(np.array([], np.int64))[0].shape == (0, 8, 8, 3)
    # The same images without train/ and validation/ above them are split.
    whole = _load("folder", tmp_path / "train", image_size=8, validation_part=0.25)
    assert (len(whole.train), len(whole.validation)) == (6, 2)


def test_a_bad_image_is_named_or_skipped(tmp_path: Path) -> None:
    _folder(tmp_path)
    bad = tmp_path / "train" / "dog" / "2.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(DataError, match=r"dog/2\.png cannot be read as an image"):
        _load("folder", tmp_path, image_size=8).train.read(np.arange(8))
    data = _load("folder", tmp_path, image_size=8, skip_bad_records=True)
    assert (len(data.train), data.skipped) == (7, 1)
    data.train.read(np.arange(7))


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
    data = _load("tfrecord", tmp_path, image_size=8)
    assert (data.shape, data.classes, len(data.train), len(data.validation)) == ((8, 8, 3), 3, 6, 6)
    features, labels = data.train.read(np.array([4, 1]))
    assert labels.tolist() == [1, 1]
    np.testing.assert_allclose(features[:, 0, 0, 0], [200 / 127.5 - 1, 50 / 127.5 - 1], atol=1e-5)


def test_a_damaged_record_is_named_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    _tfrecord(path, damage=True)
    with pytest.raises(DataError, match=r"a\.tfrecord, record 2 is damaged"):
        _load("tfrecord", path)
    data = _load("tfrecord", path, image_size=8, skip_bad_records=True, validation_part=0.2)
    assert (len(data.train), len(data.validation), data.skipped) == (4, 1, 1)
    data.train.read(np.arange(4))
    path.write_bytes(path.read_bytes()[:-10])  # and the last one cut off
    assert _load("tfrecord", path, skip_bad_records=True).skipped == 2


def test_a_users_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_data.py").write_text(
        "import tensorflow as tf\n"
        "def pairs():\n"
        "    return tf.data.Dataset.range(20).map(\n"
        "        lambda i: (tf.fill([2, 2, 1], tf.cast(i, tf.float32)), i % 4))\n"
        "def batched():\n"
        "    return pairs().batch(4)\n"
        "def flawed():\n"
        "    def check(i):\n"
        "        ratio = 1.0 / tf.cast(i - 7, tf.float32)\n"
        "        return tf.debugging.check_numerics(tf.fill([2], ratio), 'x')\n"
        "    return tf.data.Dataset.range(20).map(lambda i: (check(i), 0))\n"
    )
    monkeypatch.chdir(tmp_path)
    data = _load("their_data:pairs", validation_part=0.25)
    assert (data.shape, data.classes, len(data.train), len(data.validation)) == (
        (2, 2, 1),
        4,
        15,
        5,
    )

    def epoch(number: int, rank: int) -> list[float]:
        examples, order = data.train.in_epoch(0, number)
        seen: list[float] = []
        for share in rank_shares(order, 0, 2, rank, 2):
            seen += examples.read(share)[0][:, 0, 0, 0].tolist()
        return seen

    both = epoch(0, 0) + epoch(0, 1)
    assert sorted(both) == [float(i) for i in range(5, 20)], "each sample once, none twice"
    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(1, 0)
    # From the middle, as a resumed run asks for it.
    examples, order = data.train.in_epoch(0, 0)
    rest = [examples.read(share)[0][:, 0, 0, 0] for share in rank_shares(order, 8, 2, 0, 2)]
    assert np.concatenate(rest).tolist() == epoch(0, 0)[4:]

    with pytest.raises(UsageError, match="not batches"):
        _load("their_data:batched")
    with pytest.raises(DataError, match=r"their_data:flawed, example 7"):
        _load("their_data:flawed")
    assert _load("their_data:flawed", skip_bad_records=True).skipped == 1
    with pytest.raises(UsageError, match="cannot import it"):
        _load("their_data:missing")


def test_augmentation_is_drawn_anew_each_epoch_and_alike_on_all_ranks() -> None:
    plain, moved = _load("digits"), _load("digits", augment="flip")
    first, order = moved.train.in_epoch(0, 0)
    second, _ = moved.train.in_epoch(0, 1)
    some = order[:50]
    np.testing.assert_array_equal(first.read(some)[0][10:20], first.read(some[10:20])[0])
    assert not np.array_equal(first.read(some)[0], second.read(some)[0])
    assert not np.array_equal(first.read(some)[0], plain.train.read(some)[0])
    np.testing.assert_array_equal(first.read(some)[1], plain.train.read(some)[1])
    assert first.read(some)[0].shape == (50, 8, 8, 1)
