"""The measurements of collectives on real ranks: every one is seen, with its bytes and its wait."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from syncbn import telemetry
from syncbn.training import DistributedOptimizer
from tests.processes import Launcher

PROGRAM = """
import json, sys, time
import keras, numpy as np, tensorflow as tf
import syncbn
from syncbn import telemetry
from syncbn.training import DistributedOptimizer

ranks = syncbn.init(sys.argv[1])
telemetry.watch()
keras.utils.set_random_seed(0)
bn = syncbn.SyncBatchNormalization(name="bn")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), bn, keras.layers.Dense(2)])
optimizer = DistributedOptimizer(keras.optimizers.SGD(0.1))
optimizer.build(model.trainable_variables)

@tf.function(autograph=False)
def step(x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x, training=True) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply(gradients, model.trainable_variables)
    return tf.linalg.global_norm(gradients)

x = tf.constant(np.random.default_rng(ranks.rank).normal(size=(16, 4)), tf.float32)
step(x)
telemetry.collect()
begun = time.time()
if ranks.rank == 1:
    time.sleep(0.3)  # rank 0 has to wait for us in its first collective
step(x)
spans, numbers = telemetry.collect()
again, _ = telemetry.collect()
telemetry.all_reduce(ranks, tf.ones([10], tf.float64), "eager", "other")
eager, _ = telemetry.collect()
print(json.dumps({
    "spans": [[s.kind, s.start - begun, s.seconds, s.bytes] for s in spans],
    "numbers": numbers, "again": len(again), "eager": [[s.kind, s.bytes] for s in eager],
    "parameters": sum(int(np.prod(v.shape)) for v in model.trainable_variables),
}))
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", ["mpi", "horovod", "tf"])
def test_every_collective_of_a_step_is_measured(
    backend: str, script: Callable[[str], Path], request: pytest.FixtureRequest
) -> None:
    fixture = {"mpi": "mpirun", "horovod": "horovodrun", "tf": "tf_cluster"}[backend]
    launcher: Launcher = request.getfixturevalue(fixture)
    options = ["--gloo"] if backend == "horovod" else []
    results = launcher(2, script(PROGRAM), [backend], timeout=110, options=options).json()
    for result in results:
        kinds = [span[0] for span in result["spans"]]
        assert sorted(kinds) == ["gradients", "sync_batch_norm", "sync_batch_norm"]
        for kind, start, seconds, size in result["spans"]:
            assert 0 <= start < 5
            assert 0 <= seconds < 5
            if kind == "gradients":  # float32, with the weight and a presence for each variable
                assert size >= 4 * result["parameters"]
            else:  # at least two float64 for each of 8 channels
                assert size >= 2 * 8 * 8
        assert result["numbers"]["gradient_norm"] > 0
        assert result["again"] == 0
        assert result["eager"] == [["other", 80]]
    first, second = (sum(span[2] for span in result["spans"]) for result in results)
    assert first > 0.2 + second, "the wait for the late rank must be seen on the other one"
    assert results[0]["numbers"] == results[1]["numbers"]


def test_what_xla_compiles_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_watching", False)
    monkeypatch.setattr(telemetry, "_board", None)
    telemetry.watch()
    rows = np.ones((4, 3), "float32")
    noted = []
    for jit_compile in (False, True):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        optimizer = DistributedOptimizer(keras.optimizers.SGD(0.1))
        model.compile(optimizer, loss="mse", jit_compile=jit_compile)
        model.fit(rows, rows[:, :1], verbose=0)
        _, numbers = telemetry.collect()
        noted.append(list(numbers))
    assert noted == [["gradient_norm"], []]
