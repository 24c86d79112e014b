"""The user's own data and models on two real ranks, and files that cannot be read."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.end_to_end.test_train import TRAIN, _fingerprints, _summary
from tests.processes import Launcher, python_path

pytestmark = pytest.mark.slow

THEIRS = """
import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

def digits():
    bunch = load_digits()
    images = (bunch.images[..., None] / 16.0).astype("float32")
    pairs = tf.data.Dataset.from_tensor_slices((images, bunch.target.astype("int32")))
    return pairs.skip(300).take(700), pairs.take(300)

def model(shape, classes):
    return keras.Sequential([
        keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(64, use_bias=False),
        keras.layers.BatchNormalization(momentum=0.9), keras.layers.ReLU(),
        keras.layers.Dropout(0.1), keras.layers.Dense(classes, dtype="float32")])
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(90)
def test_the_users_data_and_model_in_mixed_precision(mpirun: Launcher, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(THEIRS)
    arguments = ["--dataset", "theirs:digits", "--model", "theirs:model", "--augment", "none"]
    arguments += ["--precision", "mixed_float16", "--label-smoothing", "0.1", "--schedule", "step"]
    arguments += ["--weight-decay", "0.01", "--compression", "float16", "--evaluate-every", "3"]
    arguments += ["--early-stopping", "2", "--epochs", "200", "--output", str(tmp_path / "out")]
    mpirun(
        2, TRAIN, arguments, environment={"PYTHONPATH": python_path(tmp_path)}, timeout=80
    ).check()
    summary = _summary(tmp_path / "out")
    assert summary["accuracy"] > 0.85
    first, second = _fingerprints(tmp_path / "out")
    assert first == second
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines if json.loads(line)["event"] == "epoch"]
    evaluated = [e["epoch"] for e in epochs if e["validation_loss"] is not None]
    assert evaluated[:3] == [2, 5, 8]
    losses = [e["validation_loss"] for e in epochs if e["validation_loss"] is not None]
    assert summary["stopped_early"]
    assert summary["epochs"] < 200
    assert losses.index(min(losses)) == len(losses) - 3  # two evaluations without a better one


def _folder(root: Path) -> None:
    random = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (root / name).mkdir(parents=True)
        for index in range(24):
            image = random.integers(level - 30, level + 30, (12, 12, 3)).astype(np.uint8)
            path = root / name / f"{index:02}.png"
            path.write_bytes(tf.io.encode_png(image).numpy())


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_a_bad_image_ends_the_job_or_is_counted(mpirun: Launcher, tmp_path: Path) -> None:
    _folder(tmp_path / "images")
    bad = tmp_path / "images" / "dark" / "07.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\nno more")
    arguments = ["--dataset", "folder", "--data", str(tmp_path / "images"), "--image-size", "8"]
    arguments += ["--model", "cnn", "--epochs", "3", "--batch-size", "4"]
    result = mpirun(2, TRAIN, [*arguments, "--output", str(tmp_path / "ended")])
    assert result.returncode == 2, result.transcript()
    assert result.orphans == ()
    told = "".join(result.stderr)
    assert told.count("dark/07.png cannot be read as an image") == 1
    assert "--skip-bad-records" in told
    assert "Traceback" not in told

    skipping = [*arguments, "--skip-bad-records", "--output", str(tmp_path / "skipped")]
    mpirun(2, TRAIN, skipping).check()
    summary = _summary(tmp_path / "skipped")
    assert summary["skipped_records"] == 1
    assert summary["accuracy"] > 0.8

    missing = [*arguments, "--data", str(tmp_path / "nowhere"), "--output", str(tmp_path / "none")]
    result = mpirun(2, TRAIN, missing)
    assert result.returncode == 2
    assert "nowhere is not a directory" in result.stderr[0]
    assert result.stderr[1] == ""
