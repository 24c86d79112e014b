"""Training and inference with TensorFlow 1's formulas, and a training argument that is a tensor.

test_matrix_two_ranks.py tests it on ranks.
"""

import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import syncbn
from syncbn import legacy
from syncbn.legacy import batch_norm, batch_normalization, default_store
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
def test_untrainable_layers_update_their_statistics(function: Callable[..., Any]) -> None:
    named(function, images(), True, trainable=False)
    layer = default_store()["bn"]
    assert layer.trainable_variables == []
    assert np.all(layer.moving_mean.numpy() != 0)


@pytest.mark.parametrize(
    "function", [*FUNCTIONS.values(), legacy.moments], ids=lambda f: f.__name__
)
def test_autograph_leaves_the_functions_as_they_are(function: Callable[..., Any]) -> None:
    """Converting them and all functions that they call takes two seconds."""
    callers: set[str] = set()

    class Rows:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            callers.update(frame.name for frame in traceback.extract_stack())
            return images()

    @tf.function
    def step() -> Any:
        rows = Rows()
        if function is legacy.moments:
            return function(rows, [0, 1, 2])
        return named(function, rows, True)

    step()
    assert function.__name__ in callers
    assert f"tf__{function.__name__}" not in callers
