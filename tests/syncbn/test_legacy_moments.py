"""Synchronized moments: values, gradient, shapes, and invalid arguments."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from syncbn.legacy import moments


@pytest.mark.parametrize("axes", [[0], [0, 1, 2], [1, -1], 0, [2, 0], (0, 1, 2, 3)])
@pytest.mark.parametrize("keep", [False, True])
def test_values_and_gradient_are_those_of_float64(axes: list[int], keep: bool) -> None:
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 3, 5, 2)) + 100.0, tf.float32)
    wide = tf.cast(x, tf.float64)
    results = []
    for values, function in ((x, moments), (wide, tf.nn.moments)):
        with tf.GradientTape() as tape:
            tape.watch(values)
            mean, variance = function(values, axes, keepdims=keep)
            loss = tf.reduce_sum(tf.sin(mean)) + tf.reduce_sum(tf.sqrt(variance))
        results.append((mean, variance, tape.gradient(loss, values)))
    for ours, oracle in zip(*results, strict=True):
        assert ours.shape == oracle.shape
        error = np.linalg.norm(ours.numpy() - oracle.numpy())
        assert error <= 2e-6 * np.linalg.norm(oracle)


def test_unknown_batch_size_and_no_rows() -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def graph(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return moments(x, [0], name="named", keep_dims=True, shift=5.0)

    mean, variance = graph(tf.constant([[1.0, 2, 3], [3, 2, 1]]))
    np.testing.assert_allclose(mean, [[2, 2, 2]])
    np.testing.assert_allclose(variance, [[1, 0, 1]])
    np.testing.assert_array_equal(graph(tf.zeros([0, 3]))[1], np.zeros((1, 3)))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_dtype_is_that_of_the_inputs(dtype: tf.DType) -> None:
    mean, variance = moments(tf.cast([[1.0], [3.0]], dtype), [0])
    assert (mean.dtype, variance.dtype) == (dtype, dtype)
    assert (float(mean[0]), float(variance[0])) == (2.0, 1.0)


def unknown_size() -> None:
    tf.function(lambda x: moments(x, [0])).get_concrete_function(tf.TensorSpec([3, None]))


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda: moments(tf.ones([2, 3]), [2]), r"different integers in \[-2, 2\). .*axes=\[2\]"),
        (lambda: moments(tf.ones([2, 3]), [0, -2]), r"different integers"),
        (lambda: moments(tf.ones([2, 3]), []), r"different integers"),
        (lambda: moments(tf.ones([2, 3], tf.int32), [0]), r"floating point.*int32"),
        (unknown_size, r"not reduced must have static sizes. Received: axes=\[0\]"),
    ],
)
def test_bad_input_is_named(misuse: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        misuse()
