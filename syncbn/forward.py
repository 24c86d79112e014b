"""What a layer computes, from its inputs to its outputs: which pieces, in which order.

Stands between `layer` (the Keras surface) and `normalize`, `ghost` and `averages`.
"""

from typing import TYPE_CHECKING

import tensorflow as tf

from syncbn import averages, ghost, normalize
from syncbn.communicators import Communicator, resolve
from syncbn.communicators.silent import heard
from syncbn.moments import Layout, Moments, compute_dtype

if TYPE_CHECKING:
    from syncbn.layer import SyncBatchNormalization


def inference(layer: "SyncBatchNormalization", inputs: tf.Tensor, layout: Layout) -> tf.Tensor:
    """Outputs by the moving statistics, in the compute dtype; communicates nothing."""
    dtype = compute_dtype(inputs.dtype)
    gamma, beta = _gamma_beta(layer, dtype)
    variance = tf.cast(layer.moving_variance, dtype)
    factor = tf.math.rsqrt(variance + tf.constant(layer.epsilon, dtype)) * gamma
    # The mean is subtracted from the inputs, not folded into the offset, where it would cost the
    # precision of inputs far from zero.
    centered = tf.cast(inputs, dtype) - layout.spread(tf.cast(layer.moving_mean, dtype))
    return centered * layout.spread(factor) + layout.spread(beta)


def training(
    layer: "SyncBatchNormalization", inputs: tf.Tensor, layout: Layout, weights: tf.Tensor | None
) -> tf.Tensor:
    """Outputs by the statistics of the joined batch; moves the averages.

    Args:
        layer: Built, with its variables.
        inputs: This rank's shard.
        layout: Which axis holds the channels.
        weights: Mask and sample weights as `arguments.joint_weights` gives them.
    """
    dtype = compute_dtype(inputs.dtype)
    gamma, beta = _gamma_beta(layer, dtype)
    group = _group(layer)
    if inputs.dtype != layer.compute_dtype or layer.adjustment is not None:
        inputs = tf.cast(inputs, dtype)  # rounded to half precision once, at the end
    if layer.adjustment is None:
        outputs, statistics = _normalized(layer, inputs, gamma, beta, layout, group, weights)
        averages.update(layer, statistics)
        return outputs
    # Between the normalized values and γ, β.
    ones, zeros = tf.ones_like(gamma), tf.zeros_like(beta)
    outputs, statistics = _normalized(layer, inputs, ones, zeros, layout, group, weights)
    averages.update(layer, statistics)
    scale, bias = layer.adjustment(tf.shape(outputs))
    outputs = outputs * tf.cast(scale, dtype) + tf.cast(bias, dtype)
    return outputs * layout.spread(gamma) + layout.spread(beta)


def _normalized(
    layer: "SyncBatchNormalization",
    inputs: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    layout: Layout,
    group: Communicator,
    weights: tf.Tensor | None,
) -> tuple[tf.Tensor, Moments]:
    """x̂·scale + offset, or with renorm (x̂·r + d)·scale + offset, and the moments to average."""
    # Not the path: that of a loaded layer lacks the name of its model, and one rank may load the
    # model that the others build.
    epsilon, name = layer.epsilon, layer.name
    if layer.virtual_batch_size is not None:
        return ghost.normalization(
            inputs, scale, offset, layout, epsilon, layer.virtual_batch_size, group, name, weights
        )
    if weights is None and not layer.renorm:
        return normalize.synchronized_normalization(
            inputs, scale, offset, layout, epsilon, averages.of(layer), group, name
        )
    statistics = normalize.batch_moments(inputs, layout, group, name, weights)
    if layer.renorm:
        r, d = averages.renorm_correction(layer, statistics, scale.dtype)
        scale, offset = r * scale, d * scale + offset
    outputs = normalize.apply_moments(
        inputs, statistics, scale, offset, layout, epsilon, group, name, weights
    )
    return outputs, statistics


def _group(layer: "SyncBatchNormalization") -> Communicator:
    """The ranks whose samples make up the batch."""
    everyone = resolve(layer.communicator if layer.synchronized else "local")
    group = everyone if layer.group_size is None else everyone.subgroup(layer.group_size)
    return heard(group.for_small_sums)


def _gamma_beta(layer: "SyncBatchNormalization", dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """γ and β, shape (C,), ones and zeros where the layer has none."""
    shape = layer.moving_mean.shape
    gamma = tf.cast(layer.gamma, dtype) if layer.scale else tf.ones(shape, dtype)
    beta = tf.cast(layer.beta, dtype) if layer.center else tf.zeros(shape, dtype)
    return gamma, beta
