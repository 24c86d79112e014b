"""Half-precision layers and inputs: dtypes, no overflow, full precision of weights."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from syncbn import SyncBatchNormalization
from tests.syncbn.oracle import relative_error
from tests.syncbn.stock import train


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"zero_debias_moving_mean": True, "renorm": True}, {"virtual_batch_size": 2}],
    ids=str,
)
def test_half_precision_policies(dtype: str, mixed: bool, arguments: dict[str, Any]) -> None:
    layer = SyncBatchNormalization(dtype=f"mixed_{dtype}" if mixed else dtype, **arguments)
    x = tf.cast(np.random.default_rng(5).normal(size=(8, 3)), dtype)
    y, dx, dgamma, dbeta = train(layer, x, np.ones((8, 3)))
    assert {tf.as_dtype(v.dtype).name for v in (y, dx)} == {dtype}
    expected = "float32" if mixed else dtype
    assert {tf.as_dtype(v.dtype).name for v in (dgamma, dbeta)} == {expected}
    assert {w.dtype for w in layer.weights} == {expected}


@pytest.mark.parametrize("masked", [True, False])
def test_large_half_precision_values_do_not_overflow(masked: bool) -> None:
    # The sum exceeds 65504 at the second row, the squares at the first.
    generator = np.random.default_rng(6)
    x = (generator.uniform(0.5, 1.0, size=(64, 4, 3)) * 60000).astype("float16")
    layer = SyncBatchNormalization(dtype="mixed_float16", momentum=0.0)
    call = {"mask": np.ones((64, 4), bool)} if masked else {}
    y, dx, dgamma, _ = train(layer, x, np.ones(x.shape), **call)
    wide = x.astype("float64")
    assert np.all(np.isfinite(np.concatenate([v.ravel() for v in (y, dx, dgamma)])))
    assert relative_error(layer.moving_mean.numpy(), wide.mean((0, 1))) < 2e-6
    assert relative_error(layer.moving_variance.numpy(), wide.var((0, 1))) < 2e-6


def test_weights_keep_their_precision_in_half_precision_layers() -> None:
    # Keras casts every float argument to the compute dtype: float16 cannot hold 0.1 or 100001.
    generator = np.random.default_rng(7)
    x = generator.normal(size=(6, 3)).astype("float16")
    weights = np.array([0.1, 0.3, 1.7, 100001.0, 54321.5, 70000.25], "float32")
    layer = SyncBatchNormalization(dtype="mixed_float16", momentum=0.0)
    layer(x, training=True, batch_weights=weights)
    exact = np.average(x.astype("float64"), axis=0, weights=weights)
    assert relative_error(layer.moving_mean.numpy(), exact) < 2e-6


def test_outputs_are_rounded_once_after_the_adjustment() -> None:
    def times_a_third(shape: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.fill([1, shape[1]], 1 / 3), tf.fill([1, shape[1]], -1e-4)

    x = np.random.default_rng(8).normal(size=(512, 3)).astype("float16")
    layer = SyncBatchNormalization(dtype="mixed_float16", adjustment=times_a_third)
    wide = x.astype("float64")
    normalized = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-3)
    once = (normalized / 3 - 1e-4).astype("float16")
    differing = np.mean(layer(x, training=True).numpy() != once)
    assert differing < 0.01, f"{differing:.1%} of the outputs are rounded twice"
