"""Replaces layers inside a model in place: in graphs, attributes, lists, tuples, dicts and sets.

Keras has no public way to do so; the little of its private structure this relies on (the tracker of
a layer, the nodes of a graph) is all in this file.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Replacement = Callable[[keras.Layer], keras.Layer | None]


def replace_layers(root: keras.Model, replacement: Replacement) -> int:
    """Replaces every layer below `root` for which `replacement(layer)` is not None.

    The new layer takes over the calls and all holders of the old one. A layer that several parts of
    the model share is replaced once.

    Returns:
        The number of layers replaced.
    """
    inside = root._flatten_layers(include_self=False, recursive=True)
    swaps = {}
    for layer in inside:
        new = replacement(layer)
        if new is not None:
            swaps[id(layer)] = (layer, new)
    if not swaps:
        return 0
    for old, new in swaps.values():
        _take_over_calls(old, new)
    for holder in [root, *inside]:
        if id(holder) in swaps:
            continue
        _replace_in(holder, swaps)
        graph = getattr(holder, "_functional", None)  # that of a Sequential
        if graph is not None:
            _replace_in(graph, swaps)
        if isinstance(holder, keras.Model):
            # Traced with the old layers.
            holder.train_function = holder.test_function = holder.predict_function = None
    return len(swaps)


def build_with_weights_of(new: keras.Layer, old: keras.Layer) -> None:
    """Builds `new` around the very variables of `old`, matched by name; creates those it lacks."""
    existing = {variable.name: variable for variable in old.weights}
    create = new.add_weight

    def add_weight(*args: Any, **options: Any) -> Any:
        variable = existing.get(options.get("name"))
        if variable is None:
            return create(*args, **options)
        variable.regularizer = options.get("regularizer")
        variable.constraint = options.get("constraint")
        # Filed by what the weight is, not by whether the layer is frozen now.
        frozen, variable.trainable = variable.trainable, options.get("trainable", True)
        new._track_variable(variable)
        variable.trainable = frozen
        return variable

    new.add_weight = add_weight
    new._parent_path = old._parent_path
    try:
        new.build_from_config(old.get_build_config())
    finally:
        del new.add_weight


def _take_over_calls(old: keras.Layer, new: keras.Layer) -> None:
    new._inbound_nodes, new._outbound_nodes = old._inbound_nodes, old._outbound_nodes
    for node in new._inbound_nodes:
        node.operation = new
        for tensor in node.outputs:
            history = getattr(tensor, "_keras_history", None)
            if history is not None:
                tensor._keras_history = history._replace(operation=new)
    old._inbound_nodes, old._outbound_nodes = [], []


def _replace_in(holder: keras.Layer, swaps: dict[int, tuple[Any, Any]]) -> None:
    tracker = holder._tracker
    for old, new in swaps.values():
        if tracker.is_in_store("layers", old):
            tracker.replace_tracked_value("layers", old, new)
    seen = {id(holder), id(tracker)}
    for name, value in list(vars(holder).items()):
        if name in ("_inbound_nodes", "_outbound_nodes", "_tracker") or name.startswith("_self_"):
            continue
        new = _swapped(value, swaps, seen)
        if new is not value:
            # Past Keras' own bookkeeping, which is done above and refuses built layers, but not
            # past TensorFlow's, which checkpoints and exports follow.
            tf.__internal__.tracking.AutoTrackable.__setattr__(holder, name, new)
    keys = getattr(holder, "_nodes", None)
    if isinstance(keys, set):
        # A functional model knows its own calls by the identity of the layer.
        for old, new in swaps.values():
            for key in [key for key in keys if key.startswith(f"{id(old)}_")]:
                keys.remove(key)
                keys.add(key.replace(str(id(old)), str(id(new)), 1))


def _swapped(value: Any, swaps: dict[int, tuple[Any, Any]], seen: set[int]) -> Any:
    """`value` with the new layers inside: itself, changed in place, where that can be."""
    if id(value) in swaps:
        return swaps[id(value)][1]
    if not isinstance(value, (list, tuple, dict, set)) or id(value) in seen:
        return value
    seen.add(id(value))
    if isinstance(value, dict):
        pairs = [(_swapped(k, swaps, seen), _swapped(v, swaps, seen)) for k, v in value.items()]
        if all(k is a and v is b for (k, v), (a, b) in zip(pairs, value.items(), strict=True)):
            return value
        if not issubclass(type(value), dict):
            # TensorFlow's wrapper, which cannot be saved once it was changed.
            return value.__class__(pairs)
        dict.clear(value)
        dict.update(value, pairs)
        return value
    items = [_swapped(item, swaps, seen) for item in value]
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    if isinstance(value, tuple):
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, set):
        set.clear(value)
        set.update(value, items)
        return value
    if isinstance(value, tf.__internal__.tracking.Trackable):
        return items  # as above
    list.__setitem__(value, slice(None), items)
    return value
