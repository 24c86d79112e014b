"""Forward and backward pass with both implementations, in one process, against the oracle."""

from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from syncbn import dispatch, native, normalize
from syncbn.communicators.local import LocalCommunicator
from syncbn.moments import Layout, Moments
from syncbn.moving_statistics import MovingStatistics, RenormStatistics
from syncbn.native import fused
from syncbn.norm_context import NormContext
from tests.syncbn import oracle
from tests.syncbn.oracle import relative_error

EPSILON = 1e-3


def statistics(channels: int, dtype: tf.DType) -> MovingStatistics:
    return MovingStatistics(tf.zeros(channels, dtype), tf.ones(channels, dtype), 0.99, False)


def alone(layout: Layout) -> NormContext:
    return NormContext(layout, EPSILON, LocalCommunicator(), "test")


def by_graph(inputs: Any, scale: Any, offset: Any, layout: Layout) -> tuple[tf.Tensor, Moments]:
    moving = statistics(scale.shape[0], scale.dtype)
    with mock.patch.object(dispatch, "native_operations", return_value=None):
        return normalize.synchronized_normalization(inputs, scale, offset, alone(layout), moving)


def by_native(inputs: Any, scale: Any, offset: Any, layout: Layout) -> tuple[tf.Tensor, Moments]:
    operations = native.operations()
    if operations is None:
        pytest.skip("no C++ compiler: python -m syncbn.native.build says more")
    moving = statistics(scale.shape[0], scale.dtype)
    return fused.normalization(operations, inputs, scale, offset, alone(layout), moving)


PATHS = pytest.mark.parametrize("path", [by_graph, by_native])


def check(
    path: Any, x: np.ndarray, axis: int, tolerance: float, mean_gradient: float = 0.0
) -> None:
    """Outputs, gradients and moments of one step against the oracle."""
    generator = np.random.default_rng(0)
    channels = x.shape[axis]
    wide = np.dtype("float64" if x.dtype == np.float64 else "float32")
    dy = np.asarray(generator.normal(size=x.shape) + mean_gradient, wide)
    gamma = np.asarray(generator.uniform(0.5, 2.0, channels), wide)
    beta = np.asarray(generator.normal(size=channels), wide)
    exact = oracle.normalize(x, dy, gamma, beta, axis, EPSILON)
    sources = [tf.constant(v) for v in (x, gamma, beta)]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        y, moments = path(*sources, Layout(x.ndim, axis))
    dx, dgamma, dbeta = tape.gradient(y, sources, output_gradients=tf.cast(dy, y.dtype))
    half = x.dtype.itemsize == 2
    assert y.dtype == wide or (half and y.dtype == x.dtype)
    assert dx.dtype == sources[0].dtype
    axes = tuple(i for i in range(x.ndim) if i != axis)
    # Rounding to half precision changes a value by 5e-4, the sum of such gradients by 1e-3.
    of_outputs = 2e-3 if y.dtype.size == 2 else tolerance
    for got, expected, limit in (
        (y, exact.outputs, of_outputs),
        (dx, exact.dx, 2e-3 if half else tolerance),
        (dgamma, exact.dgamma.sum(axis=axes), of_outputs),
        (dbeta, exact.dbeta.sum(axis=axes), of_outputs),
        (moments.mean, exact.moments.mean, tolerance),
        (moments.variance, exact.moments.variance, tolerance),
    ):
        assert relative_error(got, expected) < limit


@PATHS
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("ratio", [0.0, 1e3])
@pytest.mark.parametrize(("shape", "axis"), [((40, 7), 1), ((5, 6, 3, 4), 3), ((5, 3, 4, 6), 1)])
def test_against_the_oracle(
    path: Any, dtype: str, tolerance: float, ratio: float, shape: tuple[int, ...], axis: int
) -> None:
    x = np.random.default_rng(1).normal(size=shape) + ratio
    check(path, x.astype(dtype), axis, tolerance)


@PATHS
@pytest.mark.parametrize("shape", [(64, 5), (16, 5, 9)])
def test_mean_far_from_zero(path: Any, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(2).normal(size=shape) + 1e5
    check(path, x.astype("float32"), 1, 2e-6)


@PATHS
def test_gradient_sums_correct_the_rounded_mean(path: Any) -> None:
    """The rounding error of the mean is multiplied by Σdy: ignoring it gives an error of 8 %."""
    x = np.random.default_rng(10).normal(size=(24, 5)) + 1e5
    check(path, x.astype("float32"), 1, 5e-5, mean_gradient=30.0)


@PATHS
@pytest.mark.parametrize("position", [0, 31, 63])
def test_outlier(path: Any, position: int) -> None:
    x = np.random.default_rng(3).normal(size=(64, 5))
    x[position] = 1e4
    check(path, x.astype("float32"), 1, 1e-4)


@PATHS
def test_half_precision_inputs(path: Any) -> None:
    x = np.random.default_rng(4).normal(size=(32, 3)) * 1000.0
    check(path, x.astype("float16"), 1, 2e-6)


@PATHS
@pytest.mark.parametrize("channels", [1, 2048])
def test_one_channel_and_many(path: Any, channels: int) -> None:
    x = np.random.default_rng(5).normal(size=(9, channels))
    check(path, x.astype("float32"), 1, 2e-6)


@PATHS
@pytest.mark.parametrize("shape", [(150_000, 2), (3, 2, 50_000)])
def test_many_rows(path: Any, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(6).normal(size=shape) + 100.0
    check(path, x.astype("float32"), 1, 2e-6)


@PATHS
@pytest.mark.parametrize("scale", [1e-16, 1e-6, 1e15])
def test_tiny_and_huge_values(path: Any, scale: float) -> None:
    x = np.random.default_rng(7).normal(size=(50, 3)) * scale
    check(path, x.astype("float32"), 1, 2e-6)


@PATHS
@pytest.mark.parametrize("value", [0.0, 1.0, -12345.678, 3e7])
def test_constant_inputs_give_the_offset(path: Any, value: float) -> None:
    x = tf.fill([11, 3], tf.constant(value, tf.float32))
    y, moments = path(x, tf.ones(3), tf.constant([1.0, 2.0, 3.0]), Layout(2, 1))
    assert np.all(moments.variance.numpy() <= 1e-15 * value**2)
    np.testing.assert_allclose(y, np.tile([1.0, 2.0, 3.0], (11, 1)), rtol=1e-6)


@PATHS
def test_no_rows(path: Any) -> None:
    x, gamma = tf.zeros([0, 3]), tf.ones(3)
    with tf.GradientTape() as tape:
        tape.watch([x, gamma])
        y, moments = path(x, gamma, tf.zeros(3), Layout(2, 1))
    dx, dgamma = tape.gradient(y, [x, gamma])
    assert y.shape == dx.shape == (0, 3)
    np.testing.assert_array_equal(dgamma, np.zeros(3))
    for part in (moments.count, moments.mean, moments.variance):
        np.testing.assert_array_equal(part, np.zeros_like(part))


@PATHS
def test_moments_carry_no_gradient(path: Any) -> None:
    x = tf.constant(np.random.default_rng(8).normal(size=(6, 3)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        _, moments = path(x, tf.ones(3), tf.zeros(3), Layout(2, 1))
    assert tape.gradient([moments.mean, moments.variance], x) is None


@PATHS
def test_inputs_that_are_views(path: Any) -> None:
    # A transposed or sliced tensor must not be read as if it were contiguous.
    whole = np.random.default_rng(9).normal(size=(8, 5, 6)).astype("float32")
    x = tf.transpose(tf.constant(whole), [2, 0, 1])[1:, ::2]
    expected = oracle.normalize(x.numpy(), 0 * x.numpy(), np.ones(5), np.zeros(5), 2, EPSILON)
    y, _ = path(x, tf.ones(5), tf.zeros(5), Layout(3, 2))
    assert relative_error(y, expected.outputs) < 2e-6


@PATHS
def test_inside_a_graph_without_known_rows(path: Any) -> None:
    step = tf.function(
        lambda x: path(x, tf.ones(3), tf.zeros(3), Layout(2, 1))[0],
        input_signature=[tf.TensorSpec([None, 3])],
    )
    for rows in (4, 1, 0):
        x = np.random.default_rng(rows).normal(size=(rows, 3)).astype("float32")
        exact = oracle.normalize(x, 0 * x, np.ones(3), np.zeros(3), 1, EPSILON)
        assert relative_error(step(x), exact.outputs) < 2e-6


def test_a_graph_may_know_its_channels_or_not() -> None:
    def mean(x: tf.Tensor) -> tf.Tensor:
        return normalize.batch_moments(x, alone(Layout(2, 1))).mean

    x = np.array([[1.0, 2.0, 6.0], [3.0, 2.0, 0.0]], "float32")
    for columns in (3, None):
        graph = tf.function(mean, input_signature=[tf.TensorSpec([None, columns])])
        np.testing.assert_array_equal(graph(x), [2.0, 2.0, 3.0])


def test_renorm_corrects_what_is_normalized(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(10)
    x = generator.normal(3.0, 2.0, size=(9, 4)).astype("float32")
    gamma, beta = (generator.uniform(0.5, 2.0, 4).astype("float32") for _ in range(2))
    mean, stddev = np.full(4, 2.0), np.full(4, 1.5)
    limits = {"rmin": 1 / 1.2, "rmax": 1.2, "dmax": 0.4}
    tracked_mean, tracked_stddev = tf.constant(mean, tf.float32), tf.constant(stddev, tf.float32)
    renorm = RenormStatistics(tracked_mean, tracked_stddev, tracked_stddev, 0.9, limits)
    wide = x.astype("float64")
    deviation = np.sqrt(wide.var(axis=0) + EPSILON)
    r = np.clip(deviation / stddev, limits["rmin"], limits["rmax"])
    d = np.clip((wide.mean(axis=0) - mean) / stddev, -limits["dmax"], limits["dmax"])
    assert len({*np.round(r, 6)}) > 1, "not all may be clipped"
    expected = ((wide - wide.mean(axis=0)) / deviation * r + d) * gamma + beta
    for operations in (None, native.operations()):
        monkeypatch.setattr(dispatch, "native_operations", lambda chosen=operations: chosen)
        inputs, scale, offset = tf.constant(x), tf.constant(gamma), tf.constant(beta)
        y, _ = normalize.synchronized_normalization(
            inputs, scale, offset, alone(Layout(2, 1)), statistics(4, tf.float32), renorm
        )
        assert relative_error(y, expected) < 2e-6


def test_a_masked_nan_has_no_share_in_outputs_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = tf.constant([[np.nan], [1.0], [3.0]])
    context = NormContext(
        Layout(2, 1), EPSILON, LocalCommunicator(), "test", tf.constant([[0.0], [1.0], [1.0]])
    )
    for operations in (None, native.operations()):
        monkeypatch.setattr(dispatch, "native_operations", lambda chosen=operations: chosen)
        gamma, beta = tf.constant([2.0]), tf.constant([0.5])
        with tf.GradientTape() as tape:
            tape.watch([x, gamma])
            y, _ = normalize.synchronized_normalization(
                x, gamma, beta, context, statistics(1, tf.float32)
            )
        dx, dgamma = tape.gradient(y, [x, gamma])
        unit = 1.0 / np.sqrt(1.0 + EPSILON)
        np.testing.assert_allclose(y[:, 0], [0.5, 0.5 - 2 * unit, 0.5 + 2 * unit], rtol=1e-6)
        assert np.isfinite(dx).all()
        np.testing.assert_allclose(dgamma, [0.0], atol=1e-6)


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.0])
def test_non_finite_values_propagate_unless_their_weight_is_zero(weight: float) -> None:
    x = tf.constant([[np.nan, 1.0], [2.0, np.inf], [3.0, 4.0], [5.0, 7.0]])
    weights = tf.constant([[weight], [weight], [0.0], [1.0]])
    counted = Moments(tf.ones(1, tf.float64), tf.zeros(2, tf.float64), tf.ones(2, tf.float64))
    with tf.GradientTape() as tape:
        tape.watch(x)
        context = NormContext(Layout(2, 1), 0.0, LocalCommunicator(), "t", weights)
        y = normalize.apply_moments(x, counted, tf.ones(2), tf.zeros(2), context)
    dx = tape.gradient(y, x, output_gradients=tf.constant([[0.0, 1.0]] * 4))
    assert np.isnan(y[0, 0])
    assert np.isinf(y[1, 1])
    np.testing.assert_array_equal(y[2:], x[2:])
    # The sums of a column with NaN are NaN; non-finite values are not replaced.
    assert not np.isfinite(dx[0, 0])
    assert not np.isfinite(dx[1, 1])


@pytest.mark.parametrize("axis", [1, -1])
def test_inference_by_moving_statistics(axis: int) -> None:
    """With variances around epsilon, which must be added to them, and means far from zero."""
    generator = np.random.default_rng(0)
    x = generator.normal(1e3, 1e-2, size=(4, 5, 5))
    mean, variance, gamma, beta = generator.uniform(1e-4, 1e-3, size=(4, 5))
    mean += 1e3
    shape = [1, 1, 1]
    shape[axis] = 5
    wide = [values.reshape(shape) for values in (mean, variance, gamma, beta)]
    exact = (x - wide[0]) / np.sqrt(wide[1] + EPSILON) * wide[2] + wide[3]
    moving = MovingStatistics(tf.constant(mean), tf.constant(variance), 0.99, False)
    layout = Layout(rank=3, axis=axis % 3)
    outputs = normalize.by_moving_statistics(
        tf.constant(x), moving, tf.constant(gamma), tf.constant(beta), layout, EPSILON
    )
    assert relative_error(outputs, exact) < 1e-12
