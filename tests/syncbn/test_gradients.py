"""The messages and results of gradient reductions, with threads as ranks."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn.gradients import (
    Reduced,
    densify,
    divide,
    keras_reduces,
    presence_of,
    reduce_gradients,
    wire_dtype,
)
from tests.syncbn.threads import ThreadCommunicator, on_ranks
from tests.syncbn.worlds import mirrored

SUMS = (np.array([[1.5, -2.0, 4.0]], "float32"), np.array([8.0, 0.5], "float32"))
WEIGHTS = (2.0, 6.0)


def reduced(
    *, weights: tuple[float, ...] = WEIGHTS, factors: tuple[float, ...] = (1.0, 3.0), **options: Any
) -> tuple[list[Reduced], list[list[tuple[str, str, int]]]]:
    """Rank r has its factor times `SUMS`; rank 0 lacks the second. Also returns the messages."""

    def work(communicator: ThreadCommunicator) -> tuple[Reduced, list[tuple[str, str, int]]]:
        mine = [tf.constant(part * np.float32(factors[communicator.rank])) for part in SUMS]
        presence = tf.constant([1.0, float(communicator.rank > 0)])
        weight = tf.constant(weights[communicator.rank])
        return reduce_gradients(
            mine, presence, weight, communicator, "g", **options
        ), communicator.sent

    answers = on_ranks(2, work)
    for first, second in zip(answers[0][0].gradients, answers[1][0].gradients, strict=True):
        np.testing.assert_array_equal(first, second)
    return [answer for answer, _ in answers], [sent for _, sent in answers]


@pytest.mark.parametrize("kind", [None, "float16", "bfloat16"])
@pytest.mark.parametrize(("average", "scale"), [(True, 4.0 / 8.0), (False, 4.0)])
def test_sums_are_divided_by_the_rows_of_all_ranks(
    kind: str | None, average: bool, scale: float
) -> None:
    answers, sent = reduced(average=average, wire=wire_dtype(kind))
    for answer in answers:
        np.testing.assert_array_equal(answer.presence, [2.0, 1.0])
        for got, part in zip(answer.gradients, SUMS, strict=True):
            assert got.dtype == tf.float32
            assert got.shape == part.shape
            np.testing.assert_allclose(got, part * scale, rtol=0 if kind is None else 1e-2)
    if kind is None:
        # One message: the weight, two presences, 3 + 2 elements.
        assert sent == [[("g/float32", "float32", 1 + 2 + 5)]] * 2
    else:
        assert sent == [[("g_weights", "float32", 1 + 2), (f"g/{kind}", kind, 5)]] * 2


def test_sums_beyond_half_precision_do_not_overflow() -> None:
    answers, _ = reduced(factors=(30000.0, 30000.0), weights=(4e4, 4e4), wire=tf.float16)
    for got, part in zip(answers[0].gradients, SUMS, strict=True):
        np.testing.assert_allclose(got, part * np.float32(0.75), rtol=2e-3)


@pytest.mark.parametrize("wire", [None, tf.float16])
def test_a_rank_without_rows_contributes_zero(wire: tf.DType | None) -> None:
    answers, _ = reduced(weights=(2.0, 0.0), factors=(1.0, np.nan), wire=wire)
    for got, part in zip(answers[0].gradients, SUMS, strict=True):
        np.testing.assert_array_equal(got, part / 2.0)
    answers, _ = reduced(weights=(0.0, 0.0), factors=(np.nan, np.inf), wire=wire)
    for got in answers[0].gradients:
        np.testing.assert_array_equal(got, np.zeros(got.shape))


def test_fractional_weights_count() -> None:
    answers, _ = reduced(weights=(0.125, 0.125), factors=(1.0, 1.0))
    for got, part in zip(answers[0].gradients, SUMS, strict=True):
        np.testing.assert_array_equal(got, part * 8.0)


def test_each_dtype_has_its_own_message() -> None:
    def work(
        communicator: ThreadCommunicator,
    ) -> tuple[list[tf.Tensor], list[tuple[str, str, int]]]:
        mine = [tf.constant([1.0], tf.float64), tf.constant([1.0]), tf.constant([3.0], tf.float64)]
        answer = reduce_gradients(mine, tf.ones(3), tf.constant(2.0), communicator, "g")
        return answer.gradients, communicator.sent

    gradients, sent = on_ranks(3, work)[0]
    assert [g.dtype for g in gradients] == [tf.float64, tf.float32, tf.float64]
    assert [float(g[0]) for g in gradients] == [0.5, 0.5, 1.5]
    assert sent == [("g/float32", "float32", 5), ("g/float64", "float64", 2)]


def test_gradients_become_dense() -> None:
    table = keras.Variable(np.zeros((4, 2), "float32"))
    slices = tf.IndexedSlices(
        tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        tf.constant([3, 0, 3]),
        tf.constant([4, 2]),
    )
    expected = [[3.0, 4.0], [0.0, 0.0], [0.0, 0.0], [6.0, 8.0]]
    np.testing.assert_array_equal(densify(slices, table), expected)
    for dtype in ("float64", "bfloat16"):
        nothing = densify(None, keras.Variable(np.ones((2, 3)), dtype=dtype))
        assert nothing.dtype == dtype
        np.testing.assert_array_equal(nothing, np.zeros((2, 3)))
    kept = tf.constant([[7.0]])
    assert densify(kept, table) is kept
    np.testing.assert_array_equal(presence_of([None, slices, kept]), [0.0, 1.0, 1.0])
    assert presence_of([kept]).dtype == tf.float32


def test_dividing_keeps_the_dtype_and_survives_no_rows() -> None:
    for dtype in (tf.float64, tf.float16, tf.float32):
        gradient = tf.constant([3.0, 0.0], dtype)
        for total, expected in ((4.0, 0.75), (0.5, 6.0), (0.0, 3.0)):
            quotient = divide(gradient, tf.constant(total))
            assert quotient.dtype == dtype
            np.testing.assert_array_equal(quotient, [expected, 0.0])
    slices = tf.IndexedSlices(tf.constant([[2.0]]), tf.constant([1]), tf.constant([2, 1]))
    np.testing.assert_array_equal(divide(slices, tf.constant(4.0)), [[0.0], [0.5]])


def test_half_precisions_are_named() -> None:
    assert [wire_dtype(name) for name in (None, "float16", "bfloat16")] == [
        None,
        tf.float16,
        tf.bfloat16,
    ]
    with pytest.raises(ValueError, match=r"None, \"float16\" or \"bfloat16\".*compression='int8'"):
        wire_dtype("int8")


def test_keras_reduces_among_replicas_only() -> None:
    assert not keras_reduces()
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        assert not keras_reduces()
    with mirrored(2).scope():
        assert keras_reduces()
