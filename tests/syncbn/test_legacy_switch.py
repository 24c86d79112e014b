"""Training and inference by the old formulas, by a switch that may be a tensor."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import syncbn
from syncbn import legacy
from syncbn.legacy import batch_norm, batch_normalization, default_store
from tests.processes import Launcher
from tests.syncbn.legacy_calls import FUNCTIONS, images, named

pytestmark = pytest.mark.usefixtures("fresh_layers")


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_training_and_inference_follow_the_old_formulas(
    function: Callable[..., Any], rank: int
) -> None:
    x = images(rank)
    axes = tuple(range(rank - 1))
    wide = x.astype("float64")
    mean, variance = wide.mean(axes), wide.var(axes)
    outputs = named(function, x, True)
    np.testing.assert_allclose(outputs, (wide - mean) / np.sqrt(variance + 1e-3), 1e-5, 1e-5)
    layer = default_store()["bn"]
    decay = 0.999 if function is batch_norm else 0.99
    np.testing.assert_allclose(layer.moving_mean, (1 - decay) * mean, 1e-5)
    np.testing.assert_allclose(layer.moving_variance, decay + (1 - decay) * variance, 1e-5)
    served = (wide - layer.moving_mean.numpy()) / np.sqrt(layer.moving_variance.numpy() + 1e-3)
    np.testing.assert_allclose(named(function, x, False), served, 1e-5, 1e-5)
    assert layer.scale is (function is batch_normalization)
    assert isinstance(layer, syncbn.SyncBatchNormalization)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("kind", ["eager", "graph"])
def test_switch_may_be_a_tensor(function: Callable[..., Any], kind: str) -> None:
    x = images()
    expected = [
        named(function, x, True, "oracle").numpy(),
        named(function, x, False, "oracle").numpy(),
    ]

    def step(x: tf.Tensor, phase: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = named(function, x, phase)
            loss = tf.reduce_sum(outputs * tf.sin(outputs))
        return outputs, tape.gradient(loss, x)

    run: Any = tf.function(step) if kind == "graph" else step
    x = tf.constant(x)
    trained, gradient = run(x, tf.constant(True))
    served, _ = run(x, tf.constant(False))
    np.testing.assert_allclose(trained, expected[0], 1e-5, 1e-5)
    np.testing.assert_allclose(served, expected[1], 1e-5, 1e-5)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = named(function, x, True, "oracle")
        loss = tf.reduce_sum(outputs * tf.sin(outputs))
    np.testing.assert_allclose(gradient, tape.gradient(loss, x), 1e-4, 1e-4)
    if kind == "graph":
        assert run.experimental_get_tracing_count() <= 2  # one graph serves both


@pytest.mark.parametrize("phase", [1, np.bool_(True), tf.Variable(True), tf.constant(1)])
def test_other_forms_of_true(phase: object) -> None:
    expected = named(batch_norm, images(), True, "oracle")
    np.testing.assert_array_equal(named(batch_norm, images(), phase), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_outputs_have_the_dtype_of_the_inputs(function: Callable[..., Any], dtype: str) -> None:
    outputs = named(function, tf.cast(images(), dtype), True)
    assert outputs.dtype.name == dtype
    expected = "float64" if dtype == "float64" else "float32"
    assert default_store()["bn"].moving_mean.dtype == expected


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_untrainable_statistics_still_move(function: Callable[..., Any]) -> None:
    named(function, images(), True, trainable=False)
    layer = default_store()["bn"]
    assert layer.trainable_variables == []
    assert np.all(layer.moving_mean.numpy() != 0)


def behind_the_switch(rows: np.ndarray) -> dict[str, Any]:
    """Two steps of training around one of inference, in one graph; the losses are local sums."""

    @tf.function(input_signature=[tf.TensorSpec([None, 5, 5, 3]), tf.TensorSpec([], tf.bool)])
    def step(x: tf.Tensor, phase: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            h = batch_norm(x, is_training=phase, scope="one", decay=0.5)
            h = batch_normalization(tf.sin(h), training=phase, name="two", momentum=0.5)
            mean, variance = legacy.moments(h * h, [0, 1, 2])
            y = tf.nn.batch_normalization(h * h, mean, variance, None, None, 1e-3)
            loss = tf.reduce_sum(y * tf.cos(y))
        return y, tape.gradient(loss, x)

    x = tf.constant(rows)
    first, gradient = step(x, tf.constant(True))
    step(x, tf.constant(False))
    second, _ = step(x, tf.constant(True))
    report = {"first": first, "gradient": gradient, "second": second}
    report |= {scope: default_store()[scope].moving_variance for scope in ("one", "two")}
    return {key: value.numpy().tolist() for key, value in report.items()}


PROGRAM = """
import json, sys
import syncbn
from tests.syncbn.legacy_calls import images
from tests.syncbn.test_legacy_switch import behind_the_switch

rows = images(seed=5)
rank = syncbn.init(sys.argv[1]).rank
print(json.dumps(behind_the_switch(rows[:3] if rank == 0 else rows[3:])))
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(150)
@pytest.mark.parametrize("backend", ["horovod", "mpi"])
def test_two_ranks_behind_the_switch_equal_one_process(
    mpirun: Launcher, script: Callable[[str], Path], backend: str
) -> None:
    if backend == "horovod" and find_spec("horovod") is None:
        pytest.skip("Horovod is not built: python -m launcher install-horovod")
    ranks = mpirun(2, script(PROGRAM), [backend], timeout=100).json()
    alone = behind_the_switch(images(seed=5))
    for key in ("first", "gradient", "second"):
        joined = np.concatenate([np.array(report[key]) for report in ranks])
        assert np.linalg.norm(joined - alone[key]) < 1e-5 * np.linalg.norm(alone[key])
    for scope in ("one", "two"):
        assert ranks[0][scope] == ranks[1][scope]
        np.testing.assert_allclose(ranks[0][scope], alone[scope], 1e-5)
