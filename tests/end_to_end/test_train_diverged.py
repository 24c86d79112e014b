"""Losses that are not finite: all ranks stop at one step, or leave it out; no NaN in a file."""

from pathlib import Path

import numpy as np
import pytest

from tests.documents import strict
from tests.end_to_end.test_train import TRAIN, _fingerprints, _summary, _weights
from tests.processes import Launcher, python_path

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

# 160 images to learn from, one of them with a NaN: ten steps of two ranks an epoch.
BLOBS = """
import numpy as np
import tensorflow as tf

def blobs():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 200)
    images = random.normal(0, 0.1, (200, 4, 4, 1)).astype("float32")
    images[labels == 1, 1:3, 1:3] += 1.0
    images[77, 0, 0] = np.nan
    return tf.data.Dataset.from_tensor_slices((images, labels.astype("int32")))
"""
SMALL = [
    "--dataset",
    "blobs:blobs",
    "--model",
    "dnn",
    "--batch-size",
    "8",
    "--checkpoint-steps",
    "1",
]


@pytest.fixture
def blobs(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "blobs.py").write_text(BLOBS)
    return {"PYTHONPATH": python_path(tmp_path / "modules")}


@pytest.mark.timeout(150)
@pytest.mark.parametrize("starter", ["mpirun", "horovodrun", "tf_cluster"])
def test_all_ranks_stop_at_the_step_with_a_nan(
    starter: str, request: pytest.FixtureRequest, blobs: dict[str, str], tmp_path: Path
) -> None:
    launcher: Launcher = request.getfixturevalue(starter)
    options = ["--gloo"] if starter == "horovodrun" else []
    arguments = [*SMALL, "--epochs", "1", "--output", str(tmp_path / "out")]
    result = launcher(2, TRAIN, arguments, environment=blobs, options=options, timeout=120)
    assert result.returncode == 1, result.transcript()
    said = [line for text in result.stderr for line in text.splitlines() if "diverged" in line]
    assert len(said) == 1, result.transcript()
    assert "Traceback" not in "".join(result.stderr)
    failure = _summary(tmp_path / "out")["failure"]
    step = _summary(tmp_path / "out")["steps"]
    assert 1 < step < 10, "the NaN comes too early, or never"
    assert failure["class"] == "diverged"
    assert f"step {step} is not finite: the batch of rank " in failure["message"]
    assert "that update was not made" in failure["message"]
    last = sorted((tmp_path / "out" / "checkpoints").iterdir())[-1]
    assert last.name == f"step-{step - 1:010d}.npz"
    assert str(last) in said[0]
    assert np.isfinite(_weights(tmp_path / "out")).all()
    first, second = _fingerprints(tmp_path / "out")
    assert first == second
    assert "The job failed" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.timeout(150)
def test_skipped_updates_are_counted_and_leave_no_trace(
    mpirun: Launcher, single_process: Launcher, blobs: dict[str, str], tmp_path: Path
) -> None:
    arguments = [*SMALL, "--epochs", "2", "--on-nan", "skip", "--output", str(tmp_path / "out")]
    result = mpirun(2, TRAIN, arguments, environment=blobs).check()
    assert result.stderr[0].count("is skipped: the batch of rank") == 2, result.transcript()
    summary = _summary(tmp_path / "out")
    assert (summary["skipped_updates"], summary["steps"], summary["failure"]) == (2, 20, None)
    assert summary["accuracy"] > 0.9
    assert np.isfinite(_weights(tmp_path / "out")).all()
    first, second = _fingerprints(tmp_path / "out")
    assert first == second
    pieces = [*arguments[:-1], str(tmp_path / "pieces"), "--micro-batches", "2"]
    single_process(1, TRAIN, pieces, environment=blobs).check()
    assert _summary(tmp_path / "pieces")["skipped_updates"] == 2
    assert np.isfinite(_weights(tmp_path / "pieces")).all()


@pytest.mark.timeout(90)
def test_who_ignores_nan_gets_it_but_not_into_json(
    single_process: Launcher, tmp_path: Path
) -> None:
    beyond = ["--learning-rate", "1e30", "--model", "dnn", "--epochs", "2", "--on-nan", "ignore"]
    single_process(1, TRAIN, [*beyond, "--output", str(tmp_path / "out")]).check()
    for path in (tmp_path / "out").glob("*.json*"):
        assert list(strict(path))
    assert next(strict(tmp_path / "out" / "summary.json"))["loss"] is None
    again = [*beyond, "--epochs", "3", "--resume", "--output", str(tmp_path / "out")]
    single_process(1, TRAIN, again).check()


@pytest.mark.timeout(120)
def test_replicas_of_one_process_stop_too_and_cannot_skip(
    single_process: Launcher, tmp_path: Path
) -> None:
    beyond = ["--learning-rate", "1e30", "--model", "dnn", "--epochs", "1", "--replicas", "2"]
    beyond += ["--backend", "tf", "--output", str(tmp_path / "out")]
    result = single_process(1, TRAIN, beyond)
    assert result.returncode == 1, result.transcript()
    assert "diverged: step 2 is not finite: its loss is NaN or infinite" in result.stderr[0]
    refused = single_process(1, TRAIN, [*beyond, "--on-nan", "skip"])
    assert refused.returncode == 2
    assert "--on-nan skip needs one replica per process" in refused.stderr[0]
