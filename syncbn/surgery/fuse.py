"""Moves activations, and the additions before them, into the batch normalizations of a model.

BN → activation becomes BN(activation) → FusedActivation. BN → Add → activation becomes
FusedInput → FusedSum → BN(residual, activation): the graph keeps its shape, and only the batch
normalization moves to the place of the activation.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras

from syncbn.layer import SyncBatchNormalization
from syncbn.norm_context import Rectifier
from syncbn.surgery.fused_layers import FusedActivation, FusedInput, FusedSum
from syncbn.surgery.graphs import (
    consumers_of,
    count_calls,
    models_in,
    nodes_of,
    rebuild,
    single_consumer,
)

_LOG = logging.getLogger(__name__)


def fused(model: keras.Model) -> keras.Model:
    """A model with fused synchronized batch normalizations.

    Args:
        model: A copied model, which must not be used afterwards.
    """
    calls, plan = count_calls(model), _Plan()
    for part in models_in(model):
        if isinstance(part, keras.Sequential):
            pairs = zip(part.layers, part.layers[1:], strict=False)
            for layer, follower in pairs:
                if _fusable(layer, calls):
                    plan.add_activation(layer, follower, calls)
        else:
            _plan_functional(part, calls, plan)
    _LOG.info("model %r: fused %d batch normalizations", model.name, plan.count)
    return rebuild(model, plan.replaced) if plan.replaced else model


def unfused(model: keras.Model) -> keras.Model:
    """A model without the fused batch normalizations that `fused` created.

    Args:
        model: A copied model, which must not be used afterwards.
    """
    replaced: dict[int, Any] = {}
    for part in models_in(model):
        if isinstance(part, keras.Sequential):
            for layer, follower in zip(part.layers, part.layers[1:], strict=False):
                _restore_activation(layer, follower, replaced)
        else:
            consumers = consumers_of(part)
            for node in nodes_of(part):
                user = single_consumer(node, consumers)
                if user is not None:
                    _restore_activation(node.operation, user.operation, replaced)
                if type(node.operation) is FusedSum:
                    _restore_sum(node, consumers, replaced)
    return rebuild(model, replaced) if replaced else model


def adds_residual(layer: keras.Layer) -> bool:
    """Whether a call of `layer` in a graph has a residual."""
    return any("residual" in node.arguments.kwargs for node in layer._inbound_nodes)


class _Plan:
    """The calls to replace, see `graphs.rebuild`."""

    def __init__(self) -> None:
        self.replaced: dict[int, Any] = {}
        self.count = 0

    def add_activation(self, layer: Any, follower: Any, calls: Counter[int]) -> bool:
        """Plans to compute `follower` in `layer`, if possible."""
        activation = _activation_of(follower)
        if activation is None or not _fits(layer, follower, calls):
            return False
        layer.activation = activation
        self.replaced[id(follower)] = FusedActivation(
            keras.saving.serialize_keras_object(follower),
            name=_name(follower, layer),
            dtype=layer.dtype_policy,
        )
        self.count += 1
        return True

    def add_sum(self, layer: Any, options: dict[str, Any], add: Any, follower: Any, i: int) -> None:
        """Plans to compute `follower(add([..., layer(...), ...]))`, term i, in `layer`."""
        layer.activation = _activation_of(follower)
        terms = FusedSum(
            i,
            keras.saving.serialize_keras_object(add),
            keras.saving.serialize_keras_object(follower),
            name=f"{layer.name}_terms",
            dtype=layer.dtype_policy,
        )
        passed: list[Any] = []

        def pass_on(*arguments: Any, **_: Any) -> Any:
            passed.extend(terms(list(arguments[0] if len(arguments) == 1 else arguments)))
            return passed

        self.replaced[id(layer)] = FusedInput(name=f"{layer.name}_input", dtype=layer.dtype_policy)
        self.replaced[id(add)] = pass_on
        self.replaced[id(follower)] = lambda *_, **__: layer(
            passed[i], residual=passed[1 - i], **options
        )
        self.count += 1


def _plan_functional(model: keras.Model, calls: Counter[int], plan: _Plan) -> None:
    consumers = consumers_of(model)
    nodes: dict[int, Any] = {id(node.outputs[0]): node for node in nodes_of(model)}
    for node in nodes.values():
        user = single_consumer(node, consumers)
        if user is None:
            continue
        layer, follower = node.operation, user.operation
        if _fusable(layer, calls):
            plan.add_activation(layer, follower, calls)
            continue
        terms = _terms(node)
        if terms is None or _activation_of(follower) is None or calls[id(layer)] != 1:
            continue
        producers = [nodes.get(id(term)) for term in terms]
        # Of two batch normalizations only the later one in the order of the model can move.
        for i, before in enumerate(producers):
            if before is None or single_consumer(before, consumers) is not node:
                continue
            if (
                _fusable(before.operation, calls)
                and len(before.input_tensors) == 1
                and _fits(before.operation, layer, calls)
                and _fits(before.operation, follower, calls)
                and {term.dtype for term in terms} == {before.operation.compute_dtype}
                and not _weights_between(model, before.operation, follower)
            ):
                options = {k: v for k, v in before.arguments.kwargs.items() if k != "inputs"}
                plan.add_sum(before.operation, options, layer, follower, i)
                break


def _terms(node: Any) -> list[Any] | None:
    """The two tensors of equal shape that `node` adds, or None."""
    terms = node.input_tensors
    adds = type(node.operation) is keras.layers.Add or _operation(node.operation) == "Add"
    return terms if adds and len(terms) == 2 and terms[0].shape == terms[1].shape else None


def _fusable(layer: Any, calls: Counter[int]) -> bool:
    return (
        type(layer) is SyncBatchNormalization
        and layer.activation is keras.activations.linear
        and layer.activity_regularizer is None
        and calls[id(layer)] == 1
        and not adds_residual(layer)
    )


def _fits(layer: Any, other: Any, calls: Counter[int]) -> bool:
    """Whether `layer` may compute the layer or operation `other`, too."""
    if calls[id(other)] != 1:
        return False
    if not isinstance(other, keras.Layer):
        return True
    return other.compute_dtype == layer.compute_dtype and other.activity_regularizer is None


def _weights_between(model: keras.Model, layer: Any, other: Any) -> bool:
    """Whether layers with weights are between two in the order of the model."""
    operations = model._operations
    between = operations[operations.index(layer) + 1 : operations.index(other)]
    return any(
        isinstance(operation, keras.Layer) and (operation.variables or not operation.built)
        for operation in between
    )


def _operation(operation: Any) -> str | None:
    """The name of a function of `keras.ops` without a layer, None for layers."""
    ours = type(operation).__module__.startswith("keras.") and not isinstance(
        operation, keras.Layer
    )
    return type(operation).__name__ if ours else None


def _activation_of(operation: Any) -> Callable[..., Any] | None:
    """The rectifier that a layer or operation computes, as an activation; None for others."""
    kind, name = type(operation), _operation(operation)
    if kind is keras.layers.Activation:
        known = (keras.activations.relu, keras.activations.relu6, keras.activations.leaky_relu)
        return operation.activation if operation.activation in known else None
    if kind is keras.layers.ReLU:
        options = (operation.max_value, operation.negative_slope, operation.threshold)
        if options == (None, 0.0, 0.0):
            return keras.activations.relu
        if options == (6.0, 0.0, 0.0):
            return keras.activations.relu6
        leaky = operation.max_value is None and operation.threshold == 0.0
        return _leaky(operation.negative_slope) if leaky else None
    if kind is keras.layers.LeakyReLU or name == "LeakyRelu":
        return _leaky(operation.negative_slope)
    return {"Relu": keras.activations.relu, "Relu6": keras.activations.relu6}.get(name or "")


def _leaky(slope: float) -> Callable[..., Any] | None:
    if slope == 0.2:
        return keras.activations.leaky_relu
    return Rectifier(slope=float(slope)) if slope > 0.0 else None


def _name(operation: Any, layer: Any) -> str:
    """The name of a layer; operations have names that are not reproducible."""
    return operation.name if isinstance(operation, keras.Layer) else f"{layer.name}_activation"


def _restore_activation(layer: Any, follower: Any, replaced: dict[int, Any]) -> None:
    if type(layer) is SyncBatchNormalization and type(follower) is FusedActivation:
        layer.activation = keras.activations.linear
        replaced[id(follower)] = keras.saving.deserialize_keras_object(follower.original)


def _restore_sum(node: Any, consumers: dict[int, list[Any]], replaced: dict[int, Any]) -> None:
    """Restores the layers around a FusedSum, if they are as `fused` left them."""
    terms = node.operation
    users = [user for tensor in node.outputs for user in consumers.get(id(tensor), [])]
    before = node.input_tensors[terms.position]._keras_history.operation
    if len(users) != 2 or users[0] is not users[1] or type(before) is not FusedInput:
        return
    layer = users[0].operation
    options = {k: v for k, v in users[0].arguments.kwargs.items() if k != "residual"}
    add = keras.saving.deserialize_keras_object(terms.original)
    activation = keras.saving.deserialize_keras_object(terms.activation)
    layer.activation = keras.activations.linear
    total: list[Any] = []

    def call_sum(values: list[Any], **_: Any) -> list[Any]:
        total.append(add(values) if isinstance(add, keras.Layer) else add(*values))
        return [total[0], total[0]]

    replaced[id(before)] = lambda inputs, **_: layer(inputs, **options)
    replaced[id(terms)] = call_sum
    replaced[id(layer)] = lambda *_, **__: activation(total[0])
