"""The graphs of models: calls and consumers, and rebuilding a copied model with other calls."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from syncbn.surgery.copying import input_like, is_functional


def is_model(layer: Any) -> bool:
    """Whether `layer` is a model whose layers can be listed: functional or Sequential."""
    return is_functional(layer) or isinstance(layer, keras.Sequential)


def models_in(model: keras.Model) -> Iterator[keras.Model]:
    """The functional and Sequential models in `model`, each once, and `model` first."""
    waiting, seen = [model], set()
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting += [layer for layer in part.layers if is_model(layer)]


def count_calls(model: keras.Model) -> Counter[int]:
    """The number of calls of each layer and operation, by id; more than one if it is unknown."""
    calls: Counter[int] = Counter()
    for part in models_in(model):
        graph = is_functional(part)
        for layer in [node.operation for node in nodes_of(part)] if graph else part.layers:
            calls[id(layer)] += 1
            if isinstance(layer, keras.Layer) and not is_model(layer):
                calls.update(2 * [id(s) for s in layer._flatten_layers(include_self=False)])
    return calls


def nodes_of(model: keras.Model) -> list[Any]:
    """The nodes of a functional model."""
    return [node for nodes in model._nodes_by_depth.values() for node in nodes]


def consumers_of(model: keras.Model) -> dict[int, list[Any]]:
    """The nodes that consume each tensor of a functional model, by id; None for an output."""
    consumers: dict[int, list[Any]] = {}
    for node in nodes_of(model):
        for tensor in node.input_tensors:
            consumers.setdefault(id(tensor), []).append(node)
    for tensor in model.outputs:
        consumers.setdefault(id(tensor), []).append(None)
    return consumers


def single_consumer(node: Any, consumers: Mapping[int, list[Any]]) -> Any | None:
    """The node that alone consumes the only output of `node`, or None."""
    users = consumers.get(id(node.outputs[0]), [])
    return users[0] if len(node.outputs) == 1 and len(users) == 1 else None


Replacement = Callable[..., Any] | None


def rebuild(model: keras.Model, replaced: Mapping[int, Replacement]) -> keras.Model:
    """`model` with other calls, keeping its layers.

    Args:
        model: A copy of a model, which must not be used afterwards.
        replaced: By the id of a layer or operation what is called instead: a layer with the inputs,
            a function with all arguments; None passes the inputs on. In Sequential models only
            layers and None.
    """
    for part in models_in(model):
        for node in nodes_of(part) if is_functional(part) else []:
            # Lambda layers and operations are shared with the original of the copy.
            if isinstance(node.operation, keras.Layer) and type(node.operation) is not _SHARED:
                node.operation._inbound_nodes, node.operation._outbound_nodes = [], []
    return _Rebuilder(replaced).rebuild(model)


_SHARED = keras.layers.Lambda


class _Rebuilder:
    """Rebuilds each nested model once."""

    def __init__(self, replaced: Mapping[int, Replacement]) -> None:
        self._replaced = replaced
        self._rebuilt: dict[int, Any] = {}

    def rebuild(self, model: keras.Model) -> keras.Model:
        sequential = isinstance(model, keras.Sequential)
        new = self._sequential(model) if sequential else self._functional(model)
        if not model.trainable:
            flags = [(layer, layer.trainable) for layer in new._flatten_layers(include_self=False)]
            new.trainable = False
            for layer, flag in flags:  # parents first: a flag sets those of the sublayers
                layer.trainable = flag
        return new

    def _part(self, layer: Any) -> Any:
        if not is_model(layer):
            return layer
        if id(layer) not in self._rebuilt:
            self._rebuilt[id(layer)] = self.rebuild(layer)
        return self._rebuilt[id(layer)]

    def _sequential(self, model: keras.Sequential) -> keras.Sequential:
        layers = [self._replaced.get(id(layer), self._part(layer)) for layer in model.layers]
        first = [input_like(model.inputs[0])] if model.built else []
        return type(model)([*first, *(la for la in layers if la is not None)], name=model.name)

    def _functional(self, model: keras.Model) -> keras.Model:
        def call(operation: Any, *arguments: Any, **options: Any) -> Any:
            if id(operation) not in self._replaced:
                return operation(*arguments, **options)
            instead = self._replaced[id(operation)]
            if not (instead is None or isinstance(instead, keras.Layer)):
                return instead(*arguments, **options)
            inputs = arguments[0] if arguments else options["inputs"]
            return inputs if instead is None else instead(inputs)

        new = keras.models.clone_model(
            model,
            input_tensors=keras.tree.map_structure(input_like, model.input),
            clone_function=self._part,
            call_function=call,
        )
        if type(new) is type(model):
            return new
        return type(model)(new.input, new.output, name=model.name)
