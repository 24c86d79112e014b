"""Checks the arguments of the layer, and combines mask and sample weights into one tensor."""

from typing import Any

import keras
import tensorflow as tf

from syncbn.communicators import Communicator
from syncbn.communicators.context import BACKENDS
from syncbn.errors import SyncbnError, UnknownBackendError
from syncbn.moments import Layout, compute_dtype


def check_backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise SyncbnError(
            "SyncBatchNormalization needs the TensorFlow backend of Keras. Received: "
            f"{keras.backend.backend()!r}; set KERAS_BACKEND=tensorflow before importing keras"
        )


def check_communicator(communicator: Any) -> None:
    if not isinstance(communicator, Communicator) and communicator not in BACKENDS:
        raise UnknownBackendError(
            f"communicator must be a syncbn.Communicator or one of {', '.join(BACKENDS)}. "
            f"Received: communicator={communicator!r}"
        )


def check_positive_integer(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer or None. Received: {name}={value!r}")


def check_numbers(momentum: float, renorm_momentum: float, epsilon: float) -> None:
    for name, value in (("momentum", momentum), ("renorm_momentum", renorm_momentum)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"`{name}` must be in [0, 1]. Received: {name}={value}")
    if not epsilon >= 0.0:
        raise ValueError(f"epsilon must not be negative. Received: epsilon={epsilon}")


def check_adjustment(adjustment: Any) -> None:
    if adjustment is not None and not callable(adjustment):
        raise ValueError(
            f"adjustment must be callable or None. Received: adjustment={adjustment!r}"
        )


def check_renorm_clipping(limits: dict[str, float] | None) -> None:
    """Keras' checks and words, which its tests expect, with the received value."""
    received = f"Received: renorm_clipping={limits}"
    limits = limits or {}
    if set(limits) - {"rmax", "rmin", "dmax"}:
        raise ValueError(
            f"Received invalid keys: renorm_clipping may have rmax, rmin and dmax. {received}"
        )
    rmin, rmax, dmax = (limits.get(key) for key in ("rmin", "rmax", "dmax"))
    if rmin is not None and rmax is not None and rmax < rmin:
        raise ValueError(f"rmax should be at least rmin in renorm_clipping. {received}")
    if dmax is not None and dmax < 0:
        raise ValueError(f"dmax should be non-negative in renorm_clipping. {received}")


def check_compatible(renorm: bool, virtual_batch_size: int | None, group_size: int | None) -> None:
    if virtual_batch_size is None:
        return
    if renorm:
        raise ValueError(
            "virtual_batch_size and renorm exclude each other: choose one. "
            f"Received: virtual_batch_size={virtual_batch_size}, renorm=True"
        )
    if group_size is not None:
        raise ValueError(
            "virtual_batch_size normalizes within a rank, group_size over ranks: choose one. "
            f"Received: virtual_batch_size={virtual_batch_size}, group_size={group_size}"
        )


def check_axis(
    axis: int, input_shape: tuple[int | None, ...], virtual_batch_size: int | None
) -> None:
    rank = len(input_shape)
    if rank < 2:
        raise ValueError(
            "inputs must have a batch axis and a channel axis. "
            f"Received: inputs of shape {tuple(input_shape)}"
        )
    if not -rank <= axis < rank:
        raise ValueError(
            f"axis must lie in [{-rank}, {rank}) for inputs of rank {rank}. Received: axis={axis}, "
            f"inputs of shape {tuple(input_shape)}"
        )
    if virtual_batch_size is not None and axis % rank == 0:
        raise ValueError("virtual_batch_size needs the batch on axis 0. Received: axis=0")
    if input_shape[axis] is None:
        raise ValueError(
            f"the channel axis must have a static size. Received: axis={axis}, "
            f"inputs of shape {tuple(input_shape)}"
        )


def _check_floating(inputs: tf.Tensor) -> None:
    if not inputs.dtype.is_floating:
        raise ValueError(
            "inputs must be floating point; cast them first, for example with "
            f"keras.ops.cast(inputs, 'float32'). Received: inputs of dtype {inputs.dtype.name}"
        )


def joint_weights(
    inputs: tf.Tensor,
    layout: Layout,
    mask: tf.Tensor | None,
    batch_weights: tf.Tensor | None,
) -> tf.Tensor | None:
    """Mask and sample weights as one tensor of the rank of `inputs`, broadcastable to it.

    Returns:
        Weights in the compute dtype, of size 1 along the channel axis unless the mask varies along
        it; None without mask and weights.

    Raises:
        ValueError: The inputs are not floating point, or a shape or a weight is wrong.
    """
    _check_floating(inputs)
    if mask is None:  # Keras passes the mask of the inputs only to calls with a single tensor.
        mask = getattr(inputs, "_keras_mask", None)
    dtype = compute_dtype(inputs.dtype)
    weights = None
    if mask is not None:
        weights = tf.cast(tf.cast(_aligned_mask(inputs, layout, mask), tf.bool), dtype)
    if batch_weights is not None:
        per_sample = _sample_weights(inputs, batch_weights)
        per_sample = tf.reshape(per_sample, [-1] + [1] * (layout.rank - 1))
        weights = per_sample if weights is None else weights * per_sample
    return weights


def _aligned_mask(inputs: tf.Tensor, layout: Layout, mask: tf.Tensor) -> tf.Tensor:
    mask = tf.convert_to_tensor(mask)
    if mask.shape.rank != layout.rank - 1:
        raise ValueError(
            "mask must have one dimension fewer than inputs. "
            f"Received: mask of shape {mask.shape}, inputs of shape {inputs.shape}"
        )

    def fits(position: int) -> bool:
        spread = list(mask.shape)
        spread.insert(position, 1)
        pairs = zip(spread, inputs.shape, strict=True)
        return all(m in (1, None) or x is None or m == x for m, x in pairs)

    # A Keras mask lacks the last axis, whatever the channel axis is.
    for position in dict.fromkeys((layout.rank - 1, layout.axis)):
        if fits(position):
            return tf.expand_dims(mask, position)
    raise ValueError(
        "mask must have the shape of inputs without the last axis, or without the channel axis "
        f"{layout.axis}. Received: mask of shape {mask.shape}, inputs of shape {inputs.shape}"
    )


def _sample_weights(inputs: tf.Tensor, batch_weights: tf.Tensor) -> tf.Tensor:
    weights = tf.convert_to_tensor(batch_weights)
    batch = inputs.shape[0]
    known = weights.shape.rank == 1 and weights.shape[0] is not None and batch is not None
    if weights.shape.rank != 1 or (known and weights.shape[0] != batch):
        raise ValueError(
            f"batch_weights must have shape (batch,) = ({batch},), one weight a sample. "
            f"Received: batch_weights of shape {weights.shape}"
        )
    weights = tf.cast(weights, compute_dtype(inputs.dtype))
    message = "batch_weights must be finite and not be negative"
    valid = tf.reduce_all(tf.math.is_finite(weights) & (weights >= 0))
    if tf.executing_eagerly():
        if not valid:
            raise ValueError(f"{message}. Received: batch_weights={weights.numpy().tolist()}")
        return weights
    with tf.control_dependencies([tf.debugging.Assert(valid, [message, weights])]):
        return tf.identity(weights)
