"""The mathematics of batch statistics on tensors, independent of communicators.

`local` computes the sums of this rank as one vector, `merge` converts the sum of these vectors over
ranks to the moments of the global batch, `local_gradient_sums` and `input_gradient` are the
backward pass. The derivation follows section 3 of Ioffe and Szegedy, 2015,
https://arxiv.org/abs/1502.03167, with weights; see docs/numerics.md.

The vector sent is float64: computing the variance from sums of squares of raw values multiplies the
relative rounding error by ratio² with ratio = mean/std. In float32 no digit is left at 1e4, in
float64 six are left at 1e5, and fewer with more ranks. So sums are taken about a pivot k near the
data, and the contribution of the pivot alone is sent separately. For n = Σw, r = Σw(x−k) and
q = Σw(x−k)²,

    Σw·x = n·k + r                    Σw·x² = n·k² + (2k·r + q)

With n and k rounded to 16 significant bits each, n·k and n·k² and their sums over ranks are exact
in float64, for any pivot of each rank. Define one unit as the eighth bit of n (at least one sample)
times the last bit of k, and r' as r rounded to whole units: n·k + r' and n·k² + 2k·r' are exact as
well, and only the rest of r, and q, are rounded. `merge` moves all sums to one pivot, exactly
again. The variance keeps thirteen digits at mean/std 1e5, with any number of ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Layout:
    """Which axes of the inputs are reduced.

    Attributes:
        rank: Number of axes of the inputs.
        axis: The channel axis, 0 ≤ axis < rank.
    """

    rank: int
    axis: int

    @property
    def reduction_axes(self) -> list[int]:
        return [i for i in range(self.rank) if i != self.axis]

    def by_channel(self, shape: tf.TensorShape) -> bool:
        """Whether a tensor of this shape, broadcast against the inputs, varies by channel only."""
        if shape.rank is None or shape.rank > self.rank:
            return False
        axis = self.axis - (self.rank - shape.rank)
        return all(size == 1 for i, size in enumerate(shape) if i != axis)

    def spread(self, per_channel: tf.Tensor) -> tf.Tensor:
        """A (C,) or (1,) vector shaped to broadcast against the inputs."""
        if self.axis == self.rank - 1:
            return per_channel
        return tf.reshape(per_channel, [-1] + [1] * (self.rank - 1 - self.axis))


@dataclass(frozen=True)
class Moments:
    """Moments of the global batch, float64.

    Attributes:
        count: Number (or total weight) of the positions, shape (1,), or (C,) if it differs between
            channels.
        mean: Shape (C,). Zero where the count is zero.
        variance: The population variance, shape (C,), never negative.
        mean_rest: The rounding error of the float64 mean, shape (C,), or None.
        moved: The updated moving statistics by weight name, if the kernels computed them.
    """

    count: tf.Tensor
    mean: tf.Tensor
    variance: tf.Tensor
    mean_rest: tf.Tensor | None = None
    moved: Mapping[str, tf.Tensor] | None = None

    def inverse_stddev(self, epsilon: float) -> tf.Tensor:
        """1/√(variance + ε), float64, shape (C,)."""
        return tf.math.rsqrt(self.variance + tf.constant(epsilon, tf.float64))

    @property
    def inverse_count(self) -> tf.Tensor:
        """1/count; 0 where the count is zero."""
        return tf.math.divide_no_nan(tf.ones_like(self.count), self.count)


def compute_dtype(dtype: tf.DType) -> tf.DType:
    """The dtype of elementwise operations: float64 for float64 inputs, otherwise float32."""
    return tf.float64 if dtype == tf.float64 else tf.float32


def _sum(values: tf.Tensor, layout: Layout) -> tf.Tensor:
    """Σ over all axes but the channels, accumulated in float64, shape (C,) or (1,)."""
    return tf.reduce_sum(tf.cast(values, tf.float64), axis=layout.reduction_axes)


def local(inputs: tf.Tensor, layout: Layout, weights: tf.Tensor | None = None) -> tf.Tensor:
    """The sums of this rank.

    Args:
        inputs: float32 or float64, any shape, possibly without rows.
        layout: The position of the channel axis, of size C.
        weights: Same dtype, of the rank of `inputs` and broadcastable to it, never negative. Inputs
            of weight zero are ignored, even if they are NaN.

    Returns:
        float64 of shape (4C+2,): n in two parts (16 bits and the rest), then n·k + r', n·k² + 2k·r'
        with r' the whole units of r, the rest r" of r, and 2k·r" + q of the module's formula; r and
        q include the contribution of the rest of n. If `weights` varies along the channel axis, so
        does n, and the shape is (6C,).
    """
    if weights is None:
        count = tf.reshape(_positions(inputs, layout), [1])
        pivot = _sixteen_bits(_sample_mean(inputs, layout))
        centered = inputs - layout.spread(tf.cast(pivot, inputs.dtype))
        first, second = centered, tf.square(centered)
    else:
        valid = weights > 0
        inputs = tf.where(valid, inputs, tf.zeros_like(inputs))
        per_position = _broadcast_but_channels(weights, inputs, layout)
        count = tf.reshape(_sum(per_position, layout), [-1])
        pivot = _sixteen_bits(tf.math.divide_no_nan(_sum(weights * inputs, layout), count))
        centered = inputs - layout.spread(tf.cast(pivot, inputs.dtype))
        centered = tf.where(valid, centered, tf.zeros_like(inputs))
        first, second = weights * centered, weights * tf.square(centered)
    return pack(count, pivot, _sum(first, layout), _sum(second, layout))


def _sample_mean(inputs: tf.Tensor, layout: Layout) -> tf.Tensor:
    """The mean of about 64 to 512 positions spread over the inputs, float64, shape (C,).

    Accurate enough for a pivot, unlike a float32 sum over all rows: for a million rows it is off by
    several standard deviations at mean/std 1e5.
    """
    axes = layout.reduction_axes
    per_axis = round(64 ** (1 / len(axes)))
    steps = [
        1 if i == layout.axis else tf.maximum(tf.shape(inputs)[i] // per_axis, 1)
        for i in range(layout.rank)
    ]
    sample = inputs[tuple(slice(None, None, step) for step in steps)]
    return tf.math.divide_no_nan(_sum(sample, layout), _positions(sample, layout))


def _positions(inputs: tf.Tensor, layout: Layout) -> tf.Tensor:
    """The number of positions to reduce, a float64 scalar."""
    shape = tf.shape(inputs, out_type=tf.int64)
    return tf.cast(tf.reduce_prod(tf.gather(shape, layout.reduction_axes)), tf.float64)


def pack(count: tf.Tensor, pivot: tf.Tensor, r: tf.Tensor, q: tf.Tensor) -> tf.Tensor:
    """The vector to send (see `local`) from n, a pivot of 16 bits, r and q, all float64."""
    coarse = _sixteen_bits(count)
    fine = count - coarse
    moved = fine * pivot
    r += moved
    # Eight bits of n, 32 of k²: 13 bits are left for sums over thousands of ranks.
    unit = tf.maximum(_last_bit(coarse, 8), 1.0) * _last_bit(pivot, 16)
    whole = tf.round(tf.math.divide_no_nan(r, unit)) * unit
    rest = r - whole
    return tf.concat(
        [
            coarse,
            fine,
            coarse * pivot + whole,
            coarse * tf.square(pivot) + 2.0 * pivot * whole,
            rest,
            pivot * (2.0 * rest - moved) + q,
        ],
        axis=0,
    )


def _sixteen_bits(values: tf.Tensor) -> tf.Tensor:
    """`values` as float64, rounded to 16 significant bits."""
    bits = tf.bitcast(tf.cast(values, tf.float64), tf.int64)
    half, mask = tf.constant(1 << 36, tf.int64), tf.constant(-1 << 37, tf.int64)
    return tf.bitcast(tf.bitwise.bitwise_and(bits + half, mask), tf.float64)


def _last_bit(values: tf.Tensor, digits: int) -> tf.Tensor:
    """The value of the last of `digits` significant bits: a power of two, or 0 for 0."""
    bits = tf.bitcast(values, tf.int64)
    power = tf.bitwise.bitwise_and(bits, tf.constant(0x7FF << 52, tf.int64))
    return tf.bitcast(power, tf.float64) * 2.0 ** (1 - digits)


def _broadcast_but_channels(weights: tf.Tensor, inputs: tf.Tensor, layout: Layout) -> tf.Tensor:
    """`weights` broadcast to every axis of `inputs`, except a channel axis of size 1."""
    shape = tf.unstack(tf.shape(inputs), num=layout.rank)
    shape[layout.axis] = tf.shape(weights)[layout.axis]
    return tf.broadcast_to(weights, tf.stack(shape))


def merge(wire: tf.Tensor, channels: int | tf.Tensor) -> Moments:
    """The moments of the global batch from the sums over all ranks.

    Args:
        wire: float64, shape (4C+2,) or (6C,): the results of `local`, summed over ranks.
        channels: C.
    """
    coarse, fine = tf.split(wire[: -4 * channels], 2)
    first, second, r, q = tf.split(wire[-4 * channels :], 4)
    pivot = _sixteen_bits(tf.math.divide_no_nan(first, coarse))
    # Moves the sums to one pivot. These two lines are exact: every product and difference is a
    # whole multiple of one unit and fits in 53 bits. Only small numbers are rounded below.
    moved = first - pivot * coarse
    spread = (second - pivot * first) - pivot * moved
    count, remainder = coarse + fine, r - fine * pivot
    low = tf.math.divide_no_nan(moved + remainder, count)
    square = tf.math.divide_no_nan(spread + ((q - pivot * r) - pivot * remainder), count)
    mean = pivot + low
    added = mean - pivot  # Knuth's two-sum: mean + rest is exactly pivot + low
    rest = (pivot - (mean - added)) + (low - added)
    return Moments(count, mean, tf.maximum(square - tf.square(low), 0.0), rest)


def center(inputs: tf.Tensor, layout: Layout, moments: Moments) -> tf.Tensor:
    """inputs − mean, with the mean subtracted in two parts of the dtype of `inputs`.

    A single float32 mean has an error of up to 6e-8·|mean|: half a percent of the standard
    deviation at mean/std 1e5.
    """
    high = tf.cast(moments.mean, inputs.dtype)
    low = moments.mean - tf.cast(high, tf.float64)
    if moments.mean_rest is not None:
        low += moments.mean_rest
    return (inputs - layout.spread(high)) - layout.spread(tf.cast(low, inputs.dtype))


def local_gradient_sums(
    gradient: tf.Tensor, centered: tf.Tensor, layout: Layout
) -> tuple[tf.Tensor, tf.Tensor]:
    """Σdy and Σdy·(x − mean) of this rank, float64, shape (C,) each."""
    return _sum(gradient, layout), _sum(gradient * centered, layout)


def input_gradient(
    gradient: tf.Tensor,
    centered: tf.Tensor,
    layout: Layout,
    moments: Moments,
    epsilon: float,
    scale: tf.Tensor,
    sums: Sequence[tf.Tensor],
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """The gradient with respect to the inputs.

    dx = [γ·dy − w/n · (Σγ·dy + x̂·Σγ·dy·x̂)] / √(variance + ε), the sums over all ranks.

    Args:
        gradient: dy, same shape and dtype as the inputs.
        centered: x − mean.
        scale: γ of this rank, shape (C,).
        sums: Σγ·dy and Σγ·dy·(x − mean) over all ranks, float64, shape (C,).
        weights: As in `local`; a position of weight zero does not affect the statistics.
    """
    dtype = gradient.dtype
    inverse = moments.inverse_stddev(epsilon)
    through_mean = tf.cast(inverse * sums[0] * moments.inverse_count, dtype)
    through_variance = tf.cast(tf.pow(inverse, 3) * sums[1] * moments.inverse_count, dtype)
    shared = layout.spread(through_mean) + centered * layout.spread(through_variance)
    if weights is not None:
        shared = weights * shared
    return gradient * layout.spread(tf.cast(inverse, dtype) * scale) - shared


NO_SECOND_DERIVATIVE = (
    "synchronized batch normalization has no second derivative; for a gradient penalty use a layer "
    "without batch statistics, such as LayerNormalization"
)


def without_derivative(gradient: tf.Tensor) -> tf.Tensor:
    """`gradient`, with an error as its gradient: its statistics are treated as constants."""
    return tf.raw_ops.PreventGradient(input=gradient, message=NO_SECOND_DERIVATIVE)
