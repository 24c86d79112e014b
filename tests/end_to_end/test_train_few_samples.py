"""Fewer samples than ranks: a rank without rows takes part, or all say that it has none."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.test_train import TRAIN, _fingerprints, _summary, _weights
from tests.processes import Launcher

DATA = """
import keras
import numpy as np
import tensorflow as tf

def one_sample():
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    pairs = tf.data.Dataset.from_tensor_slices((x, np.arange(4) % 2))
    return pairs.take(1), pairs.skip(1)

def pooled(shape, classes):
    # Convolutions and poolings of TensorFlow on no rows: wrong shapes, and an abort.
    x = inputs = keras.Input(shape)
    x = keras.layers.Conv2D(8, 3, use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Conv2D(8, 1, activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.Flatten()(x)))
"""


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(400)
def test_a_rank_without_rows_changes_nothing(
    mpirun: Launcher,
    horovodrun: Launcher,
    tf_cluster: Launcher,
    single_process: Launcher,
    tmp_path: Path,
) -> None:
    (tmp_path / "few.py").write_text(DATA)
    environment = {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}

    def arguments(name: str, *more: str) -> list[str]:
        job = ["--dataset", "few:one_sample", "--model", "few:pooled", "--epochs", "3"]
        job += ["--batch-size", "4", "--optimizer", "sgd", "--warmup-epochs", "0"]
        job += ["--deterministic", "--learning-rate", "0.01", "--output", str(tmp_path / name)]
        return [*job, *more]

    mpirun(2, TRAIN, arguments("pieces", "--micro-batches", "2"), environment=environment).check()
    gloo = ["--gloo"]
    horovodrun(2, TRAIN, arguments("gloo"), environment=environment, options=gloo).check()
    horovodrun(2, TRAIN, arguments("horovod"), environment=environment, options=["--mpi"]).check()
    tf_cluster(2, TRAIN, arguments("tf"), environment=environment).check()
    alone = arguments("alone", "--learning-rate", "0.02")
    single_process(1, TRAIN, alone, environment=environment).check()

    refused = single_process(1, TRAIN, arguments("two", "--replicas", "2"), environment=environment)
    assert refused.returncode == 2
    assert "must not exceed the 1 training samples" in refused.stderr[0]

    for name in ("pieces", "gloo", "horovod", "tf"):
        assert _summary(tmp_path / name)["steps"] == 3
        first, second = _fingerprints(tmp_path / name)
        assert first == second
        np.testing.assert_allclose(
            _weights(tmp_path / name), _weights(tmp_path / "alone"), atol=1e-6, err_msg=name
        )


FIT = """
import json
import keras, numpy as np, syncbn
ranks = syncbn.init("mpi")
x = np.ones((2, 4), "float32")[ranks.rank :: ranks.size]
model = keras.Sequential([keras.layers.Dense(1)])
model.compile(syncbn.DistributedOptimizer(keras.optimizers.SGD()), "mse")
try:
    model.fit(x, x[:, :1], verbose=0, callbacks=[syncbn.callbacks.BroadcastVariables()])
except syncbn.errors.WorldError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(90)
def test_fit_without_data_on_one_rank_is_refused_on_all(
    mpirun: Launcher, script: Callable[[str], Path]
) -> None:
    for text in mpirun(3, script(FIT)).json():
        assert "no data on ranks [2]; steps by rank [1, 1, 0]" in text
        assert "start fewer ranks" in text
