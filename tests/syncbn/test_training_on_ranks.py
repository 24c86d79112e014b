"""Gradients averaged over real ranks, against one process that sees all rows at once."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.processes import Launcher
from tests.syncbn.one_process import dense_model, flat_weights, train_alone

Script = Callable[[str], Path]

# Every check of one world in one job: starting ranks costs more than all of them.
PROGRAM = """
import json, sys
import keras, numpy as np, tensorflow as tf
from syncbn.communicators import init
from syncbn import (DistributedGradientTape, DistributedOptimizer, broadcast_variables,
                    weigh_rows)

ranks = init(sys.argv[1])
generator = np.random.default_rng(7)
features = generator.normal(size=(7, 4)).astype("float32")
targets = (features @ np.array([[1.0], [-2.0], [0.5], [3.0]], "float32")).astype("float32")
part = slice(0, 5) if ranks.rank == 0 else slice(5, 7)  # uneven: 5 rows and 2
x, y = features[part], targets[part]
report = {}

def dense_model(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"),
                             keras.layers.Dense(1)])

def weights(model):
    return np.concatenate([w.ravel() for w in model.get_weights()]).tolist()

# Different seeds: the broadcast makes the starts equal.
model = dense_model(ranks.rank)
broadcast_variables(model, root_rank=1)
report["broadcast"] = weights(model)

def start():
    model = dense_model(1)
    return model

# fit, uneven rows weighed, clipped after averaging
model = start()
optimizer = DistributedOptimizer(keras.optimizers.Adam(0.05, global_clipnorm=0.5))
model.compile(optimizer, loss="mse")
weigh_rows(model)
model.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0)
report["fit"] = weights(model)
model.save(sys.argv[2] + f"/model-{ranks.rank}.keras")

# train_on_batch
model = start()
model.compile(DistributedOptimizer(keras.optimizers.SGD(0.1)), loss="mse")
weigh_rows(model)
for _ in range(3):
    model.train_on_batch(x, y)
report["train_on_batch"] = weights(model)

def custom(optimizer, steps, x=x, y=y, rows=len(x), graph=True):
    model = start()
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(tf.reduce_sum(tf.square(model(x) - y)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables), rows=rows)
    step = tf.function(step) if graph else step
    for _ in range(steps):
        step(x, y)
    return weights(model)

report["eager"] = custom(DistributedOptimizer(keras.optimizers.SGD(0.1)), 3, graph=False)
report["loss_scale"] = custom(DistributedOptimizer(
    keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=64)), 3)
for kind in ("float16", "bfloat16"):
    report[kind] = custom(DistributedOptimizer(keras.optimizers.SGD(0.1), compression=kind), 3)
report["sum"] = custom(DistributedOptimizer(keras.optimizers.SGD(0.01), average=False), 3)

# An infinite gradient on one rank: both ranks skip the step and halve the scale.
scaler = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=64)
bad = x * (np.inf if ranks.rank == 1 else 1)
report["skipped"] = custom(DistributedOptimizer(scaler), 1, x=bad)
report["scale"] = float(scaler.dynamic_scale)

# Two passes a step: rank 0 gives rows 0-1 then 2-4, rank 1 row 5 then 6.
model = start()
optimizer = DistributedOptimizer(keras.optimizers.Adam(0.05), backward_passes_per_step=2)
@tf.function(reduce_retracing=True)
def step(x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(x) - y))
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables), rows=tf.shape(x)[0])
cut = 2 if ranks.rank == 0 else 1
for _ in range(3):
    step(x[:cut], y[:cut])
    step(x[cut:], y[cut:])
report["passes"] = weights(model)
report["iterations"] = int(optimizer.iterations)

# Sparse gradients, a variable only rank 0 reaches, and one nobody reaches, which weight decay must
# not move.
table = keras.Variable(np.arange(12, dtype="float32").reshape(6, 2))
one_sided = keras.Variable([1.0, 1.0])
untouched = keras.Variable([5.0])
optimizer = DistributedOptimizer(keras.optimizers.SGD(1.0, weight_decay=0.5))
@tf.function
def sparse_step():
    with tf.GradientTape() as tape:
        rows = tf.gather(table.value, [0, 1] if ranks.rank == 0 else [1, 5])
        loss = tf.reduce_sum(rows)
        if ranks.rank == 0:
            loss += tf.reduce_sum(one_sided.value * 4.0)
    held = [table, one_sided, untouched]
    gradients = tape.gradient(loss, [v.value for v in held])
    assert isinstance(gradients[0], tf.IndexedSlices)
    optimizer.apply_gradients(zip(gradients, held))
sparse_step()
report["sparse"] = [v.numpy().tolist() for v in (table, one_sided, untouched)]

# The tape, on one variable.
variable = keras.Variable(2.0)
with DistributedGradientTape() as tape:
    loss = variable * (ranks.rank + 1.0)
report["tape"] = float(tape.gradient(loss, variable))

# Two ranks that broadcast different lists are told so.
try:
    broadcast_variables([variable] * (1 + ranks.rank))
except Exception as error:
    report["mismatch"] = type(error).__name__
print(json.dumps(report))
"""


def _check_world(reports: list[dict], tmp_path: Path) -> None:
    first, second = reports
    assert first == second, "the ranks ended with different weights"
    np.testing.assert_array_equal(first["broadcast"], flat_weights(dense_model(1)))
    sgd = train_alone(keras.optimizers.SGD(0.1), 3)
    for name in ("train_on_batch", "eager", "loss_scale"):
        np.testing.assert_allclose(first[name], sgd, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(first["float16"], sgd, atol=2e-3)
    np.testing.assert_allclose(first["bfloat16"], sgd, atol=2e-2)
    clipped = train_alone(keras.optimizers.Adam(0.05, global_clipnorm=0.5), 4)
    np.testing.assert_allclose(first["fit"], clipped, atol=1e-6)
    np.testing.assert_allclose(
        first["passes"], train_alone(keras.optimizers.Adam(0.05), 3), atol=1e-6
    )
    assert first["iterations"] == 3
    summed = train_alone(
        keras.optimizers.SGD(0.01), 3, scale=7.0
    )  # the mean of seven rows, times seven
    np.testing.assert_allclose(first["sum"], summed, atol=1e-5)
    np.testing.assert_array_equal(first["skipped"], flat_weights(dense_model(1)))
    assert first["scale"] == 32

    table, one_sided, untouched = first["sparse"]
    expected = np.arange(12, dtype="float32").reshape(6, 2) * 0.5  # the decay of SGD(1.0)
    expected[[0, 5]] -= 0.5
    expected[1] -= 1.0
    np.testing.assert_allclose(table, expected)
    np.testing.assert_allclose(one_sided, [0.5 - 2.0, 0.5 - 2.0])
    assert untouched == [5.0]
    assert first["tape"] == 1.5
    assert first["mismatch"] == "WorldError"

    # Saved files know nothing of us: a plain optimizer comes back.
    loaded = keras.saving.load_model(tmp_path / "model-0.keras")
    assert type(loaded.optimizer) is keras.optimizers.Adam
    assert int(loaded.optimizer.iterations) == 4


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_two_mpi_ranks_train_as_one_process(
    mpirun: Launcher, script: Script, tmp_path: Path
) -> None:
    _check_world(mpirun(2, script(PROGRAM), ["mpi", str(tmp_path)], timeout=100).json(), tmp_path)


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_two_horovod_ranks_over_gloo_train_as_one_process(
    horovodrun: Launcher, script: Script, tmp_path: Path
) -> None:
    result = horovodrun(
        2, script(PROGRAM), ["horovod", str(tmp_path)], timeout=100, options=["--gloo"]
    )
    _check_world(result.json(), tmp_path)


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_two_workers_of_a_tf_cluster_train_as_one_process(
    tf_cluster: Launcher, script: Script, tmp_path: Path
) -> None:
    result = tf_cluster(2, script(PROGRAM), ["tf", str(tmp_path)], timeout=100)
    _check_world(result.json(), tmp_path)
