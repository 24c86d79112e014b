"""The float64 oracle: batch normalization of the global batch in NumPy, forward and backward.

Independent of ranks: a test joins the shards, calls the oracle, and splits the result into shards.
Implements the formulas of Ioffe and Szegedy (2015) and Ioffe (2017) directly, in two passes.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Moments:
    """Moments of the global batch; `centered` is x − mean in full precision, shaped like x."""

    count: Array
    mean: Array
    variance: Array
    centered: Array


@dataclass(frozen=True)
class Normalized:
    """The expected results of a training step.

    Attributes:
        outputs: y, shaped like the inputs.
        dx: Gradient of the inputs, of the sum of the losses of all ranks.
        dgamma: Contribution of each position to the gradient of γ, shaped like the inputs: its sum
            over a shard is the result of that rank.
        dbeta: The same for β.
    """

    outputs: Array
    dx: Array
    dgamma: Array
    dbeta: Array
    moments: Moments


def _columns(values: Array, axis: int) -> Array:
    """(C, N): channels first and contiguous, so that NumPy's sums over N are pairwise."""
    values = np.moveaxis(values, axis, 0)
    return np.ascontiguousarray(values.reshape(values.shape[0], -1))


def spread(per_channel: Array, like: Array, axis: int) -> Array:
    """A (C,) vector shaped to broadcast along `axis` of `like`."""
    shape = [1] * like.ndim
    shape[axis] = -1
    return np.reshape(per_channel, shape)


def moments(x: Array, axis: int = -1, weights: Array | None = None) -> Moments:
    """Weighted population moments per channel.

    Args:
        x: Any float dtype and shape.
        axis: The channel axis.
        weights: Broadcastable to x. Values of weight zero are ignored. None: all ones.
    """
    x = np.asarray(x, np.float64)
    w = np.ones(x.shape) if weights is None else np.broadcast_to(weights, x.shape)
    w = np.asarray(w, np.float64)
    values, w_columns = _columns(np.where(w > 0, x, 0.0), axis), _columns(w, axis)
    count = w_columns.sum(axis=1)
    divisor = np.where(count > 0, count, 1.0)
    # The rounding error of a float64 mean is large compared with a small deviation, so the mean of
    # the differences is subtracted again.
    near = (w_columns * values).sum(axis=1) / divisor
    for _ in range(2):
        low = (w_columns * (values - near[:, None])).sum(axis=1) / divisor
        mean = near + low
        near, low = mean, low - (mean - near)
    centered_columns = (values - near[:, None]) - low[:, None]
    variance = (w_columns * centered_columns**2).sum(axis=1) / divisor
    centered = (x - spread(near, x, axis)) - spread(low, x, axis)
    return Moments(count, mean, variance, centered)


def normalize(
    x: Array,
    dy: Array,
    gamma: Array,
    beta: Array,
    axis: int = -1,
    epsilon: float = 1e-3,
    weights: Array | None = None,
    r: Array | float = 1.0,
    d: Array | float = 0.0,
    adjustment: tuple[Array, Array] | None = None,
) -> Normalized:
    """y = ((x̂·r + d)·scale + bias)·γ + β and its gradients, for the loss Σ y·dy.

    Args:
        x: The global batch.
        dy: Gradient of the outputs.
        gamma: Shape (C,).
        beta: Shape (C,).
        axis: The channel axis.
        epsilon: Added to the variance.
        weights: See `moments`. Positions of weight zero are normalized as well.
        r: Renorm's factor, shape (C,), a constant for the gradient.
        d: Renorm's shift, likewise.
        adjustment: (scale, bias), broadcastable to x.
    """
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    gamma, beta = np.asarray(gamma, np.float64), np.asarray(beta, np.float64)
    scale, bias = (1.0, 0.0) if adjustment is None else adjustment
    batch = moments(x, axis, weights)
    channels = x.shape[axis]
    inverse = spread(1.0 / np.sqrt(batch.variance + epsilon), x, axis)
    w = np.ones(x.shape) if weights is None else np.broadcast_to(weights, x.shape)
    share = w / spread(np.where(batch.count > 0, batch.count, 1.0), x, axis)
    r_, d_ = (spread(np.broadcast_to(v, (channels,)), x, axis) for v in (r, d))
    gamma_ = spread(gamma, x, axis)

    normal = batch.centered * inverse
    plain = (normal * r_ + d_) * scale + bias
    outputs = plain * gamma_ + spread(beta, x, axis)

    towards_normal = dy * gamma_ * scale * r_
    axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    harmless = np.where((w > 0) | np.isfinite(normal), normal, 0.0)
    through_mean = towards_normal.sum(axis=axes, keepdims=True)
    through_variance = (towards_normal * harmless).sum(axis=axes, keepdims=True)
    dx = inverse * (towards_normal - share * (through_mean + harmless * through_variance))
    return Normalized(outputs, dx, dy * plain, dy, batch)


def move(moving: Array | float, batch: Array, momentum: float) -> Array:
    """The moving average after a step."""
    return moving * momentum + batch * (1.0 - momentum)


def renorm_correction(
    batch: Moments,
    renorm_mean: Array,
    renorm_stddev: Array,
    epsilon: float,
    clipping: dict[str, float],
) -> tuple[Array, Array]:
    """r and d of batch renormalization from the statistics before their update."""
    tracked = np.maximum(renorm_stddev, np.sqrt(epsilon))
    r = np.sqrt(batch.variance + epsilon) / tracked
    d = (batch.mean - renorm_mean) / tracked
    r = np.clip(r, clipping.get("rmin", -np.inf), clipping.get("rmax", np.inf))
    dmax = clipping.get("dmax", np.inf)
    return r, np.clip(d, -dmax, dmax)


def relative_error(ours: Array, exact: Array) -> float:
    """‖ours − exact‖ / ‖exact‖; ‖ours‖ if `exact` is zero."""
    ours, exact = np.asarray(ours, np.float64), np.asarray(exact, np.float64)
    if ours.shape != exact.shape:
        raise AssertionError(f"shapes differ: {ours.shape} and {exact.shape}")
    norm = float(np.linalg.norm(exact))
    return float(np.linalg.norm(ours - exact)) / (norm or 1.0)
