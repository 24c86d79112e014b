"""Folds batch normalizations into the preceding convolutions and dense layers, for inference.

At inference `BN(conv(x)) = s·(conv(x) − mean) + β` with `s = γ/√(variance + ε)` per channel: a
convolution with the kernel scaled by s and another bias.
"""

import logging
from typing import Any

import keras
import numpy as np

from syncbn.layer import SyncBatchNormalization
from syncbn.surgery.copying import UncopyableError, carry_compilation, copy_model
from syncbn.surgery.fuse import unfused
from syncbn.surgery.graphs import (
    consumers_of,
    count_calls,
    models_in,
    nodes_of,
    rebuild,
    single_consumer,
)

_LOG = logging.getLogger(__name__)

_BATCH_NORMALIZATIONS = (keras.layers.BatchNormalization, SyncBatchNormalization)

# The weight with the output channels, and their axis. The last axes of a depthwise kernel are
# (input channels, multiplier), whose product is the number of output channels.
_DEPTHWISE = 0
_FOLDABLE = {
    keras.layers.Dense: ("kernel", -1),
    keras.layers.Conv1D: ("kernel", -1),
    keras.layers.Conv2D: ("kernel", -1),
    keras.layers.Conv3D: ("kernel", -1),
    keras.layers.Conv1DTranspose: ("kernel", -2),
    keras.layers.Conv2DTranspose: ("kernel", -2),
    keras.layers.Conv3DTranspose: ("kernel", -2),
    keras.layers.DepthwiseConv1D: ("kernel", _DEPTHWISE),
    keras.layers.DepthwiseConv2D: ("kernel", _DEPTHWISE),
    keras.layers.SeparableConv1D: ("pointwise_kernel", -1),
    keras.layers.SeparableConv2D: ("pointwise_kernel", -1),
}


def fold_batchnorm(model: keras.Model) -> keras.Model:
    """A copy for inference with batch normalizations folded into the preceding layers.

    Folds `keras.layers.BatchNormalization` and `syncbn.SyncBatchNormalization` layers that directly
    follow a Dense, Conv1D/2D/3D, Conv1D/2D/3DTranspose, DepthwiseConv1D/2D or SeparableConv1D/2D
    (channels first or last, grouped or not) without an activation, if nothing else uses that layer
    or its outputs, in Sequential and functional models nested at any depth. What
    `convert_sync_batchnorm(model, fuse=True)` fused is separated first. Others remain; the log has
    the number of folded layers. The folded layer keeps its name, and gets the `activation` of a
    `SyncBatchNormalization`.

    Predictions differ by rounding errors only. The copy is for `predict`, `evaluate` and `export`;
    training it trains a different model.

    Args:
        model: A built Sequential or functional model, which does not change.

    Returns:
        The folded copy.

    Raises:
        ValueError: The model is subclassed, unbuilt, or has a layer that cannot be copied.
    """
    if not isinstance(model, keras.Model) or not model.built:
        received = "an unbuilt model" if isinstance(model, keras.Model) else type(model).__name__
        raise ValueError(f"fold_batchnorm expects a built keras.Model. Received: {received}")
    try:
        copy = copy_model(model)
    except UncopyableError as reason:
        raise ValueError(
            "fold_batchnorm expects a Sequential or functional model whose layers can be copied; "
            f"fold the functional parts of a subclassed one. Received: {reason}"
        ) from reason
    copy = unfused(copy)
    found = sum(type(layer) in _BATCH_NORMALIZATIONS for layer in copy._flatten_layers())
    folded = rebuild(copy, _replacements(copy))
    left = sum(type(layer) in _BATCH_NORMALIZATIONS for layer in folded._flatten_layers())
    _LOG.info("model %r: folded %d of %d batch normalizations", model.name, found - left, found)
    carry_compilation(model, folded)
    return folded


def _replacements(model: keras.Model) -> dict[int, Any]:
    """Each layer that is folded, by id, with its replacement; None for the normalizations."""
    calls = count_calls(model)
    replaced: dict[int, Any] = {}
    for part in models_in(model):
        for before, normalization in _neighbours(part):
            if _can_fold(before, normalization) and calls[id(before)] == 1:
                replaced[id(before)] = _folded(before, normalization)
                replaced[id(normalization)] = None
    return replaced


def _neighbours(model: keras.Model) -> list[tuple[Any, Any]]:
    """Pairs of layers in which only the second consumes the outputs of the first, at inference."""
    if isinstance(model, keras.Sequential):
        return list(zip(model.layers, model.layers[1:], strict=False))
    consumers = consumers_of(model)
    pairs = []
    for node in nodes_of(model):
        user = single_consumer(node, consumers)
        # A call with training=True uses batch statistics, one with two tensors adds a residual.
        if user is None or user.arguments.kwargs.get("training") or len(user.input_tensors) != 1:
            continue
        pairs.append((node.operation, user.operation))
    return pairs


def _can_fold(before: Any, normalization: Any) -> bool:
    if type(before) not in _FOLDABLE or type(normalization) not in _BATCH_NORMALIZATIONS:
        return False
    if before.activation is not keras.activations.linear:
        return False
    if getattr(before, "lora_enabled", False) or getattr(before, "quantization_mode", None):
        return False
    if not (before.built and normalization.built):
        return False
    rank = normalization.input_spec.ndim
    first = getattr(before, "data_format", "channels_last") == "channels_first"
    return (
        normalization.axis % rank == (1 if first else rank - 1)
        and before.compute_dtype == normalization.compute_dtype
    )


def _folded(before: Any, normalization: Any) -> keras.Layer:
    """A copy of `before` with the normalization folded into its weights, computed in float64."""
    config = before.get_config() | {"use_bias": True}
    activation = getattr(normalization, "activation", None)
    if activation is not None:
        config["activation"] = keras.activations.serialize(activation)
    layer = type(before).from_config(config)
    layer.build_from_config(before.get_build_config())
    for old in before.weights:
        next(v for v in layer.weights if v.name == old.name).assign(old)

    def value(variable: Any, missing: float) -> np.ndarray:
        if variable is None:
            return np.array(missing)
        return keras.ops.convert_to_numpy(variable).astype(np.float64)

    variance = value(normalization.moving_variance, 1.0)
    factor = value(normalization.gamma, 1.0) / np.sqrt(variance + normalization.epsilon)
    bias = value(before.bias, 0.0) - value(normalization.moving_mean, 0.0)
    layer.bias.assign(bias * factor + value(normalization.beta, 0.0))
    name, axis = _FOLDABLE[type(before)]
    kernel = value(getattr(before, name), 0.0)
    if axis == _DEPTHWISE:
        spread = factor.reshape(kernel.shape[-2:])
    else:
        spread = factor.reshape([-1] + [1] * (-axis - 1))
    getattr(layer, name).assign(kernel * spread)
    return layer
