"""A broadcast as a sum, in which all ranks but the root contribute zeros."""

from collections.abc import Callable, Sequence

import tensorflow as tf


def _bits(tensor: tf.Tensor) -> tf.Tensor:
    """The bit pattern of `tensor` as int32, so that a sum with zeros copies it exactly."""
    if tensor.dtype in (tf.int32, tf.int64):
        return tensor
    if tensor.dtype in (tf.float32, tf.float64):
        return tf.bitcast(tensor, tf.int32)
    if tensor.dtype == tf.bool:
        return tf.cast(tensor, tf.int32)
    if tensor.dtype.size == 2:
        return tf.cast(tf.bitcast(tensor, tf.int16), tf.int32)
    return tf.cast(tf.bitcast(tensor, tf.uint8), tf.int32)


def _from_bits(bits: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    if like.dtype in (tf.int32, tf.int64):
        return bits
    if like.dtype in (tf.float32, tf.float64):
        return tf.bitcast(bits, like.dtype)
    if like.dtype == tf.bool:
        return tf.cast(bits, tf.bool)
    return tf.bitcast(tf.cast(bits, tf.int16 if like.dtype.size == 2 else tf.uint8), like.dtype)


def broadcast_by_sum(
    tensors: Sequence[tf.Tensor],
    is_root: bool | tf.Tensor,
    reduce_many: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
) -> list[tf.Tensor]:
    """The tensors of the root, bit for bit, for backends with a sum but no broadcast.

    Args:
        tensors: The tensors of this rank.
        is_root: Whether this rank is the root.
        reduce_many: Sums int32 and int64 tensors over the ranks.
    """
    bits = [_bits(tensor) for tensor in tensors]
    mine = [tf.where(is_root, pattern, tf.zeros_like(pattern)) for pattern in bits]
    return [_from_bits(b, t) for b, t in zip(reduce_many(mine), tensors, strict=True)]
