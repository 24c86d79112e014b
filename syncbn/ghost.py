"""Ghost batch normalization (Hoffer et al., 2017, https://arxiv.org/abs/1705.08741).

Each block of a rank's samples is normalized by its own statistics, without communication: the C++
operations support blocks directly; for TensorFlow operations they become additional channels of a
local normalization. Only the moving statistics, the average over blocks, are shared by all ranks.
"""

import dataclasses

import tensorflow as tf

from syncbn import dispatch, normalize
from syncbn.communicators.base import unique_name
from syncbn.communicators.local import LocalCommunicator
from syncbn.moments import Layout, Moments, compute_dtype
from syncbn.moving_statistics import MovingStatistics
from syncbn.native import fused
from syncbn.norm_context import NormContext


def normalization(
    inputs: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    context: NormContext,
    moving: MovingStatistics,
    block_size: int,
) -> tuple[tf.Tensor, Moments]:
    """Normalizes every block of `block_size` samples by its own moments.

    Returns:
        The outputs in the compute dtype, and the average of the moments over all blocks of all
        ranks (one all-reduce, no gradient).

    Raises:
        ValueError: `block_size` does not divide the batch (InvalidArgumentError if the batch size
            is known only at run time).
    """
    layout, weights = context.layout, context.weights
    channels = inputs.shape[layout.axis]
    blocks = _block_count(inputs, block_size)
    alone = dataclasses.replace(context, communicator=LocalCommunicator())
    operations = dispatch.native_operations()
    if operations is not None and fused.fits(alone):
        outputs, sums = fused.ghost_normalization(
            operations, inputs, scale, offset, alone, moving, blocks
        )
        return outputs, _average(sums, context)
    packed = _blocks_to_channels(inputs, layout, blocks, block_size)
    spread = None if weights is None else tf.broadcast_to(weights, tf.shape(inputs))
    others = [
        None if values is None else _blocks_to_channels(values, layout, blocks, block_size)
        for values in (spread, context.residual)
    ]
    inner = Layout(layout.rank, layout.rank - 1)
    alone = dataclasses.replace(alone, layout=inner, weights=others[0], residual=others[1])
    statistics = normalize.batch_moments(packed, alone)
    outputs = normalize.apply_moments(
        packed, statistics, tf.tile(scale, [blocks]), tf.tile(offset, [blocks]), alone
    )
    outputs = _channels_to_blocks(outputs, inputs, layout, blocks, block_size)
    return outputs, _average(_sums(statistics, channels), context)


def _block_count(inputs: tf.Tensor, block_size: int) -> tf.Tensor:
    batch = inputs.shape[0]
    expected = f"virtual_batch_size must divide the batch of each rank (a multiple of {block_size})"
    if batch is not None and batch % block_size:
        raise ValueError(
            f"{expected}. Received: virtual_batch_size={block_size}, a batch of {batch}"
        )
    dynamic = tf.shape(inputs)[0]
    if batch is None:
        check = tf.debugging.assert_equal(dynamic % block_size, 0, message=expected)
        with tf.control_dependencies([check] if check is not None else []):
            dynamic = tf.identity(dynamic)
    return dynamic // block_size


def _channels_last(layout: Layout) -> list[int]:
    return [*layout.reduction_axes, layout.axis]


def _blocks_to_channels(
    values: tf.Tensor, layout: Layout, blocks: tf.Tensor, block_size: int
) -> tf.Tensor:
    """(blocks·block_size, …, C, …) → (block_size, …, blocks·C)."""
    values = tf.cast(values, compute_dtype(values.dtype))
    values = tf.transpose(values, _channels_last(layout))
    shape = tf.shape(values)
    rank = layout.rank
    split = tf.reshape(values, tf.concat([[blocks, block_size], shape[1:]], axis=0))
    moved = tf.transpose(split, [*range(1, rank), 0, rank])
    merged = tf.concat([[block_size], shape[1:-1], [blocks * shape[-1]]], axis=0)
    return tf.reshape(moved, merged)


def _channels_to_blocks(
    packed: tf.Tensor, like: tf.Tensor, layout: Layout, blocks: tf.Tensor, block_size: int
) -> tf.Tensor:
    """The inverse of `_blocks_to_channels`."""
    rank = layout.rank
    order = _channels_last(layout)
    channels = like.shape[layout.axis]
    inner = tf.shape(packed)[:-1]
    split = tf.reshape(packed, tf.concat([inner, [blocks, channels]], axis=0))
    moved = tf.transpose(split, [rank - 1, *range(rank - 1), rank])
    joined = tf.concat([[blocks * block_size], inner[1:], [channels]], axis=0)
    outputs = tf.transpose(tf.reshape(moved, joined), [order.index(i) for i in range(rank)])
    outputs.set_shape(like.shape)
    return outputs


def _sums(statistics: Moments, channels: int) -> tf.Tensor:
    """The number of non-empty blocks and the sums of their means, variances, counts: (4C,)."""
    counts = tf.broadcast_to(statistics.count, tf.shape(statistics.mean))
    table = [tf.reshape(v, [-1, channels]) for v in (statistics.mean, statistics.variance, counts)]
    used = tf.cast(table[2] > 0.0, tf.float64)
    columns = [used, used * table[0], used * table[1], table[2]]
    return tf.concat([tf.reduce_sum(column, axis=0) for column in columns], axis=0)


def _average(sums: tf.Tensor, context: NormContext) -> Moments:
    """Mean and variance averaged over the non-empty blocks of all ranks."""
    wire = context.communicator.all_reduce(sums, unique_name(f"{context.name}/ghost"))
    number, mean, variance, samples = tf.split(wire, 4)
    # Bessel's correction uses the count of one block.
    per_block = tf.math.divide_no_nan(samples, number)
    return Moments(
        per_block,
        tf.math.divide_no_nan(mean, number),
        tf.math.divide_no_nan(variance, number),
    )
