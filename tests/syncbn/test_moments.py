"""The pure functions against the oracle: sums, merge, centering, the input gradient."""

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from syncbn import moments
from syncbn.moments import Layout, Moments
from tests.syncbn import oracle
from tests.syncbn.oracle import relative_error

COLUMNS = Layout(2, 1)


def joined_moments(
    shards: list[np.ndarray], layout: Layout = COLUMNS, weights: list[np.ndarray] | None = None
) -> Moments:
    absent: list[np.ndarray | None] = [None] * len(shards)
    wires = [
        moments.local(tf.constant(x), layout, None if w is None else tf.constant(w))
        for x, w in zip(shards, weights or absent, strict=True)
    ]
    return moments.merge(tf.add_n(wires), shards[0].shape[layout.axis])


def shards_at(
    ratio: float, ranks: int, dtype: str, rows: int = 50, channels: int = 16
) -> list[np.ndarray]:
    generator = np.random.default_rng(ranks)
    means = generator.uniform(0.5, 1.0, channels) * ratio
    shapes = [(rows + 7 * rank, channels) for rank in range(ranks)]
    return [(generator.normal(size=shape) + means).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 300])
@pytest.mark.parametrize(
    ("dtype", "ratio", "tolerance"),
    [
        ("float32", 0, 1e-7),
        ("float32", 1e3, 1e-7),
        ("float32", 1e5, 1e-7),
        ("float64", 0, 1e-14),
        ("float64", 1e3, 1e-13),
        ("float64", 1e5, 1e-12),
    ],
)
def test_variance_far_from_zero_over_any_number_of_ranks(
    ranks: int, dtype: str, ratio: float, tolerance: float
) -> None:
    # Plain sums of squares in float64 lose 4e-6 over 64 ranks at 1e5, and 1e-10 at 1e3.
    shards = shards_at(ratio, ranks, dtype)
    exact = oracle.moments(np.concatenate(shards))
    ours = joined_moments(shards)
    assert relative_error(ours.variance, exact.variance) < tolerance
    assert relative_error(ours.mean, exact.mean) < 1e-6
    assert ours.count.numpy().item() == exact.count[0]


def test_outlier_in_the_first_row() -> None:
    shards = shards_at(0, 2, "float32")
    shards[0][0] = 1e4
    exact = oracle.moments(np.concatenate(shards))
    ours = joined_moments(shards)
    assert relative_error(ours.variance, exact.variance) < 1e-6
    assert relative_error(ours.mean, exact.mean) < 1e-6


def test_ranks_with_means_far_from_each_other() -> None:
    generator = np.random.default_rng(0)
    shards = [
        (generator.normal(size=(20, 4)) + offset).astype("float64")
        for offset in (0.0, 1e6, -3e5, 17.0)
    ]
    exact = oracle.moments(np.concatenate(shards))
    ours = joined_moments(shards)
    assert relative_error(ours.variance, exact.variance) < 1e-14
    assert relative_error(ours.mean, exact.mean) < 1e-14


def test_fractional_weights_far_from_zero() -> None:
    generator = np.random.default_rng(1)
    shards = shards_at(1e3, 3, "float64")
    weights = [generator.uniform(0.1, 3.0, size=(len(x), 1)) for x in shards]
    exact = oracle.moments(np.concatenate(shards), weights=np.concatenate(weights))
    ours = joined_moments(shards, weights=weights)
    assert relative_error(ours.variance, exact.variance) < 1e-13
    assert relative_error(ours.count, exact.count[:1]) < 1e-14


def test_more_rows_than_sixteen_bits_count() -> None:
    generator = np.random.default_rng(2)
    x = (generator.normal(size=(300_001, 2)) + 1e5).astype("float32")
    exact = oracle.moments(x)
    ours = joined_moments([x[:70_001], x[70_001:]])
    assert ours.count.numpy().item() == 300_001
    assert relative_error(ours.variance, exact.variance) < 1e-7


@pytest.mark.parametrize("value", [0.0, 1.0, 1e5 + 1 / 3, -123456.789, 1e-30, 1e15])
def test_constant_inputs_have_no_variance(value: float) -> None:
    ours = joined_moments([np.full((n, 3), value, "float32") for n in (5, 1, 70)])
    # An equal rest in every row cancels, except for the last bits of its square.
    assert np.all(ours.variance.numpy() <= 1e-15 * value**2)
    assert relative_error(ours.mean, np.full(3, np.float32(value))) < 1e-15


@pytest.mark.parametrize("value", [1e-15, 1e18])
def test_tiny_and_huge_inputs(value: float) -> None:
    ours, exact = _moments_of_size(value)
    assert relative_error(ours.variance, exact.variance) < 1e-6
    assert relative_error(ours.mean, exact.mean) < 1e-6


@pytest.mark.parametrize("value", [1e-42, 1e-30])
def test_inputs_whose_squares_are_no_normal_numbers(value: float) -> None:
    """Squares below 1e-38 may count as zero, far below any epsilon."""
    ours, exact = _moments_of_size(value)
    np.testing.assert_array_less(np.abs(ours.mean.numpy() - exact.mean), 1.2e-38)
    np.testing.assert_array_less(np.abs(ours.variance.numpy() - exact.variance), 1.2e-38)


def _moments_of_size(value: float) -> tuple[moments.Moments, Any]:
    generator = np.random.default_rng(3)
    shards = [(generator.normal(size=(30, 4)) * value).astype("float32") for _ in range(2)]
    return joined_moments(shards), oracle.moments(np.concatenate(shards))


@pytest.mark.parametrize("channels", [1, 2048])
def test_one_channel_and_many(channels: int) -> None:
    shards = shards_at(10.0, 2, "float32", rows=9, channels=channels)
    exact = oracle.moments(np.concatenate(shards))
    assert relative_error(joined_moments(shards).variance, exact.variance) < 1e-7


def test_rank_without_rows_changes_nothing() -> None:
    shards = shards_at(1e3, 2, "float32")
    with_empty = joined_moments([*shards, np.zeros((0, 16), "float32")])
    without = joined_moments(shards)
    for ours, expected in zip(
        (with_empty.count, with_empty.mean, with_empty.variance),
        (without.count, without.mean, without.variance),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, expected)


def test_no_rows_anywhere_gives_zeros() -> None:
    ours = joined_moments([np.zeros((0, 3), "float32")] * 2)
    for part in (ours.count, ours.mean, ours.variance, ours.inverse_count):
        np.testing.assert_array_equal(part, np.zeros_like(part))


def test_nan_of_weight_zero_is_ignored() -> None:
    x = np.array([[1.0, 2.0], [np.nan, np.inf], [3.0, 6.0]], "float32")
    ours = joined_moments([x], weights=[np.array([[1.0], [0.0], [1.0]], "float32")])
    np.testing.assert_allclose(ours.mean, [2.0, 4.0])
    np.testing.assert_allclose(ours.variance, [1.0, 4.0])


def test_nan_of_positive_weight_stays_visible() -> None:
    x = np.array([[1.0, 2.0], [np.nan, 4.0]], "float32")
    ours = joined_moments([x])
    assert np.isnan(ours.mean[0])
    assert np.isnan(ours.variance[0])
    np.testing.assert_allclose(ours.mean[1], 3.0)


def test_weights_that_vary_along_the_channels() -> None:
    generator = np.random.default_rng(4)
    x = generator.normal(size=(12, 3)).astype("float64")
    weights = (generator.uniform(size=(12, 3)) > 0.4).astype("float64")
    exact = oracle.moments(x, weights=weights)
    ours = joined_moments([x[:5], x[5:]], weights=[weights[:5], weights[5:]])
    np.testing.assert_array_equal(ours.count, exact.count)
    assert relative_error(ours.mean, exact.mean) < 1e-14
    assert relative_error(ours.variance, exact.variance) < 1e-14


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_every_axis_can_be_the_channels(axis: int) -> None:
    generator = np.random.default_rng(axis)
    x = generator.normal(size=(4, 3, 5, 2)).astype("float64")
    exact = oracle.moments(x, axis)
    ours = joined_moments([x], Layout(4, axis))
    assert relative_error(ours.mean, exact.mean) < 1e-14
    assert relative_error(ours.variance, exact.variance) < 1e-14


@pytest.mark.parametrize("ratio", [0, 1e3, 1e5])
def test_center_keeps_the_accuracy_of_the_mean(ratio: float) -> None:
    x = shards_at(ratio, 1, "float32")[0]
    batch = joined_moments([x])
    exact = oracle.normalize(x, np.zeros_like(x), np.ones(16), np.zeros(16)).outputs
    centered = moments.center(tf.constant(x), COLUMNS, batch)
    assert relative_error(centered * tf.cast(batch.inverse_stddev(1e-3), "float32"), exact) < 3e-7


@pytest.mark.parametrize("ratio", [0, 1e3, 1e5])
def test_input_gradient(ratio: float) -> None:
    generator = np.random.default_rng(5)
    x = shards_at(ratio, 1, "float32")[0]
    dy = generator.normal(size=x.shape).astype("float32")
    gamma = generator.uniform(0.5, 2.0, 16).astype("float32")
    exact = oracle.normalize(x, dy, gamma, np.zeros(16))
    batch = joined_moments([x])
    centered = moments.center(tf.constant(x), COLUMNS, batch)
    first, second = moments.local_gradient_sums(tf.constant(dy), centered, COLUMNS)
    ours = moments.input_gradient(
        tf.constant(dy),
        centered,
        COLUMNS,
        batch,
        1e-3,
        tf.constant(gamma),
        (gamma * first, gamma * second),
    )
    assert relative_error(ours, exact.dx) < 5e-7


def test_merge_is_the_same_compiled_by_xla() -> None:
    # The exact steps of `merge` must stay exact with a compiler that rewrites arithmetic.
    shards = shards_at(1e5, 8, "float32")
    wire = tf.add_n([moments.local(tf.constant(x), COLUMNS) for x in shards])
    compiled = tf.function(
        lambda w: (lambda m: (m.mean, m.variance))(moments.merge(w, 16)), jit_compile=True
    )
    exact = oracle.moments(np.concatenate(shards))
    assert relative_error(compiled(wire)[1], exact.variance) < 1e-7
    local = tf.function(lambda x: moments.local(x, COLUMNS), jit_compile=True)
    ours = moments.merge(tf.add_n([local(tf.constant(x)) for x in shards]), 16)
    assert relative_error(ours.variance, exact.variance) < 1e-6


@given(st.floats(-1e30, 1e30).filter(lambda value: not 0 < abs(value) < 1e-200), st.integers(1, 53))
def test_sixteen_bits_are_the_nearest(value: float, digits: int) -> None:
    fraction, exponent = math.frexp(value)
    rounded = float(moments._sixteen_bits(tf.constant(value, tf.float64)))
    # Halves are rounded away from zero.
    kept = math.copysign(math.floor(abs(fraction) * 2**16 + 0.5), fraction)
    assert rounded == math.ldexp(kept, exponent - 16)
    unit = float(moments._last_bit(tf.constant(value, tf.float64), digits))
    assert unit == (math.ldexp(1.0, exponent - digits) if value else 0.0)


def test_the_mean_is_subtracted_with_what_float64_rounds_off() -> None:
    x = tf.constant([[1.0, 1e8 + 2.0]], tf.float64)
    one, mean, rest = np.ones(1), np.array([0.25, 1e8]), np.array([1e-17, -3e-9])
    with_rest = moments.Moments(one, tf.constant(mean), tf.ones(2), tf.constant(rest))
    np.testing.assert_array_equal(moments.center(x, COLUMNS, with_rest), [[0.75, 2.0 + 3e-9]])
    without = moments.Moments(one, tf.constant(mean), tf.ones(2))
    np.testing.assert_array_equal(moments.center(x, COLUMNS, without), [[0.75, 2.0]])


@pytest.mark.parametrize(
    ("shape", "by_channel"),
    [
        ((), True),
        ((3,), False),
        ((3, 1), True),
        ((1, 3, 1), True),
        ((1, 3, 5), False),
        ((4, 3, 1), False),
        ((0, 3, 1), False),
        ((1, 1, 1), True),
        ((1, 1, 3, 1), False),
        (None, False),
    ],
)
def test_what_varies_by_channel_only(shape: tuple[int, ...] | None, by_channel: bool) -> None:
    assert Layout(3, 1).by_channel(tf.TensorShape(shape)) is by_channel
