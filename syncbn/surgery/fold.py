"""Folds batch normalizations into the preceding convolutions and dense layers, for inference.

At inference `BN(conv(x)) = s·(conv(x) − mean) + β` with `s = γ/√(variance + ε)` per channel: a
convolution with the kernel scaled by s and another bias.
"""

import logging
from collections import Counter
from typing import Any

import keras
import numpy as np

from syncbn.layer import SyncBatchNormalization
from syncbn.surgery.copying import (
    UncopyableError,
    carry_compilation,
    copy_model,
    input_like,
    is_functional,
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
    or its outputs, in Sequential and functional models nested at any depth. Others remain; the log
    has the number of folded layers. The folded layer keeps its name, and gets the `activation` of a
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
    folder = _Folder(copy)
    folded = folder.fold(copy)
    found = sum(type(layer) in _BATCH_NORMALIZATIONS for layer in copy._flatten_layers())
    left = sum(type(layer) in _BATCH_NORMALIZATIONS for layer in folded._flatten_layers())
    _LOG.info("model %r: folded %d of %d batch normalizations", model.name, found - left, found)
    carry_compilation(model, folded)
    return folded


class _Folder:
    """Rebuilds a model with folded layers; may modify it. Each nested model is rebuilt once."""

    def __init__(self, model: keras.Model) -> None:
        self._calls = _count_calls(model)
        self._rebuilt: dict[int, Any] = {}

    def fold(self, model: keras.Model) -> keras.Model:
        if isinstance(model, keras.Sequential):
            return self._sequential(model)
        return self._functional(model)

    def _part(self, layer: Any) -> Any:
        """The replacement of a layer that is not folded: itself, or the rebuilt nested model."""
        if not (is_functional(layer) or isinstance(layer, keras.Sequential)):
            return layer
        if id(layer) not in self._rebuilt:
            self._rebuilt[id(layer)] = self.fold(layer)
        return self._rebuilt[id(layer)]

    def _sequential(self, model: keras.Sequential) -> keras.Sequential:
        layers: list[Any] = []
        for layer in model.layers:
            if layers and self._can_fold(layers[-1], layer):
                layers[-1] = _folded(layers[-1], layer)
            else:
                layers.append(self._part(layer))
        return type(model)([input_like(model.inputs[0]), *layers], name=model.name)

    def _functional(self, model: keras.Model) -> keras.Model:
        folded = {
            id(before): _folded(before, normalization)
            for before, normalization in _single_consumers(model)
            if self._can_fold(before, normalization)
        }
        new_layers = {id(layer) for layer in folded.values()}
        normalized: dict[
            int, Any
        ] = {}  # outputs that still have their batch normalization before them

        def call(layer: Any, *args: Any, **options: Any) -> Any:
            inputs = args[0] if args else options.get("inputs")
            if normalized.pop(id(inputs), None) is not None:
                return inputs
            outputs = layer(*args, **options)
            if id(layer) in new_layers:
                normalized[id(outputs)] = outputs
            return outputs

        rebuilt = keras.models.clone_model(
            model,
            clone_function=lambda layer: folded.get(id(layer)) or self._part(layer),
            call_function=call,
        )
        if type(rebuilt) is type(model):
            return rebuilt
        return type(model)(rebuilt.input, rebuilt.output, name=model.name)

    def _can_fold(self, before: Any, normalization: Any) -> bool:
        if type(before) not in _FOLDABLE or type(normalization) not in _BATCH_NORMALIZATIONS:
            return False
        if self._calls[id(before)] != 1 or before.activation is not keras.activations.linear:
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


def _count_calls(model: keras.Model) -> Counter[int]:
    """The number of calls of each layer, by id; more than one if it is unknown."""
    calls: Counter[int] = Counter()
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        graph = is_functional(part)
        inside = [n.operation for n in _nodes(part)] if graph else part.layers
        for layer in inside:
            calls[id(layer)] += 1
            if is_functional(layer) or isinstance(layer, keras.Sequential):
                waiting.append(layer)
            elif isinstance(layer, keras.Layer):
                calls.update(2 * [id(s) for s in layer._flatten_layers(include_self=False)])
    return calls


def _nodes(model: keras.Model) -> list[Any]:
    return [node for nodes in model._nodes_by_depth.values() for node in nodes]


def _single_consumers(model: keras.Model) -> list[tuple[Any, Any]]:
    """Pairs of layers in which only the second consumes the outputs of the first, at inference."""
    consumers: dict[int, list[Any]] = {}
    for node in _nodes(model):
        for tensor in node.input_tensors:
            consumers.setdefault(id(tensor), []).append(node)
    for tensor in model.outputs:
        consumers.setdefault(id(tensor), []).append(None)
    pairs = []
    for node in _nodes(model):
        users = consumers.get(id(node.outputs[0]), [])
        if len(node.outputs) != 1 or len(users) != 1 or users[0] is None:
            continue
        # A call with training=True uses batch statistics.
        if not users[0].arguments.kwargs.get("training"):
            pairs.append((node.operation, users[0].operation))
    return pairs


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
