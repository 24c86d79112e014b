"""Digits, MNIST and CIFAR-10: arrays in files as their makers write them, whole and damaged."""

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from launcher.errors import UsageError
from launcher.train.data import DataError, fashion_mnist, load_dataset

RANDOM = np.random.default_rng(5)


def test_digits_are_standardized_with_a_fixed_split() -> None:
    first, second = load_dataset("digits", seed=1), load_dataset("digits", seed=2)
    assert (len(first.train), len(first.validation)) == (1438, 359)
    features, labels = first.train.read(np.arange(1438))
    assert abs(features.mean()) < 1e-3
    assert abs(features.std() - 1) < 1e-3
    assert set(labels.tolist()) == set(range(10))
    np.testing.assert_array_equal(
        first.validation.read(np.arange(10))[0], second.validation.read(np.arange(10))[0]
    )


def test_digits_are_those_of_scikit_learn() -> None:
    theirs, ours = load_digits(), load_dataset("digits")
    parts = [part.read(np.arange(len(part))) for part in (ours.train, ours.validation)]
    features, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    low, high = features.min(), features.max()
    pixels = np.rint((features - low) * 16 / (high - low)).reshape(-1, 64)
    found, expected = (
        np.unique(np.column_stack(columns), axis=0)
        for columns in ((pixels, labels), (theirs.data, theirs.target))
    )
    np.testing.assert_array_equal(found, expected)


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
    data = load_dataset("mnist", tmp_path)
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


def test_fashion_mnist_is_found_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with pytest.raises(UsageError, match=r"apt-get install dataset-fashion-mnist.*keras.*debian"):
        load_dataset("fashion-mnist")
    cache = tmp_path / "keras" / "datasets" / "fashion-mnist"
    cache.mkdir(parents=True)
    _mnist(cache, compress=True)
    data = load_dataset("fashion-mnist")
    assert (data.name, len(data.train), data.shape) == ("fashion-mnist", 20, (5, 4, 1))
    _mnist(tmp_path)
    assert len(load_dataset("fashion-mnist", tmp_path).train) == 20
    (tmp_path / "debian").mkdir()
    with pytest.raises(DataError, match="debian"):  # before Keras' cache
        load_dataset("fashion-mnist")


def test_the_real_fashion_mnist() -> None:
    if not fashion_mnist.DEBIAN.is_dir():
        pytest.skip("no Fashion-MNIST: apt-get install dataset-fashion-mnist")
    data = load_dataset("fashion-mnist")
    assert (len(data.train), len(data.validation), data.classes) == (60_000, 10_000, 10)
    assert data.shape == (28, 28, 1)
    images, labels = data.train.read(np.arange(60_000))
    assert np.bincount(labels).tolist() == [6000] * 10
    assert abs(float(images.mean())) < 1e-3
    assert float(images.std()) == pytest.approx(1.0, abs=1e-3)


def test_mnist_in_an_npz_file(tmp_path: Path) -> None:
    arrays = list(_mnist(tmp_path).values())
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=arrays[0], y_train=arrays[1], x_test=arrays[2], y_test=arrays[3])
    assert len(load_dataset("mnist", path).train) == 20
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"mnist\.npz is damaged"):
        load_dataset("mnist", path)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (np.array([0, 1, -1, 2]), "example 2: expected a label from 0 to .* Received: -1"),
        (np.array([0, 1, 2, 1.5]), "expected integer labels"),
        (np.array(["cat", "dog", "cat", "emu"]), "expected integer labels"),
    ],
)
def test_invalid_labels_of_arrays(tmp_path: Path, labels: np.ndarray, problem: str) -> None:
    images, path = np.zeros((4, 5, 4), np.uint8), tmp_path / "mnist.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=[0, 1, 2, 0])
    with pytest.raises(DataError, match=problem):
        load_dataset("mnist", path)


@pytest.mark.timeout(20)
def test_pipes_instead_of_arrays_are_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mnist.npz")
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    os.mkfifo(tmp_path / "data_batch_1")
    for dataset, path in (("mnist", tmp_path / "mnist.npz"), ("mnist", tmp_path)):
        with pytest.raises(DataError, match="is not a regular file"):
            load_dataset(dataset, path)
    with pytest.raises(DataError, match="data_batch_1 is not a regular file"):
        load_dataset("cifar10", tmp_path)


def test_damaged_and_missing_mnist_files_are_named(tmp_path: Path) -> None:
    _mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-3])
    with pytest.raises(DataError, match="train-labels-idx1-ubyte is damaged: expected 20 bytes"):
        load_dataset("mnist", tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte \(or .gz\) does not exist"):
        load_dataset("mnist", tmp_path)
    with pytest.raises(UsageError, match="needs --data"):
        load_dataset("mnist")


def _cifar(directory: Path) -> np.ndarray:
    images = RANDOM.integers(0, 256, (4, 3072), np.uint8)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        batch = {b"data": images, b"labels": [0, 1, 2, 9], b"batch_label": b"x"}
        (directory / name).write_bytes(pickle.dumps(batch, protocol=2))
    return images


def test_cifar10_batches(tmp_path: Path) -> None:
    images = _cifar(tmp_path)
    data = load_dataset("cifar10", tmp_path)
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


def test_a_cifar10_label_beyond_its_ten_classes_is_named(tmp_path: Path) -> None:
    images = _cifar(tmp_path)
    batch = {b"data": images, b"labels": [0, 10, 2, 9]}
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match=r"data_batch_2, example 1: .* from 0 to 9\. Received: 10"):
        load_dataset("cifar10", tmp_path)


def test_a_cifar10_file_cannot_run_code(tmp_path: Path) -> None:
    _cifar(tmp_path)
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (witness,))

    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(DataError, match=r"data_batch_3 is damaged.*it asks for"):
        load_dataset("cifar10", tmp_path)
    assert not witness.exists()
