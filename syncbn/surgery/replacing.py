"""Replaces layers inside a model in place: in graphs, attributes, lists, tuples, dicts and sets.

Keras has no public API for this; all uses of its private structures (the tracker of a layer, the
nodes of a graph) are in this file.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Replacement = Callable[[keras.Layer], keras.Layer | None]


def replace_layers(root: keras.Model, replacement: Replacement) -> int:
    """Replaces every layer below `root` for which `replacement(layer)` is not None.

    The new layer replaces the old one in all calls and attributes. A shared layer is replaced once.

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
        graph = getattr(holder, "_functional", None)  # of a Sequential
        if graph is not None:
            _replace_in(graph, swaps)
        if isinstance(holder, keras.Model):
            # These were traced with the old layers.
            holder.train_function = holder.test_function = holder.predict_function = None
    return len(swaps)


def build_with_weights_of(new: keras.Layer, old: keras.Layer) -> None:
    """Builds `new` with the variables of `old`, matched by name; creates missing ones."""
    existing = {variable.name: variable for variable in old.weights}
    create = new.add_weight

    def add_weight(*args: Any, **options: Any) -> Any:
        variable = existing.get(options.get("name"))
        if variable is None:
            return create(*args, **options)
        variable.regularizer = options.get("regularizer")
        variable.constraint = options.get("constraint")
        # The tracker sorts weights by their own flag, not by that of a frozen layer.
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
            # Bypasses Keras' tracker, which is updated above and rejects built layers, but not
            # TensorFlow's tracking, which checkpoints and exports need.
            tf.__internal__.tracking.AutoTrackable.__setattr__(holder, name, new)
    keys = getattr(holder, "_nodes", None)
    if isinstance(keys, set):
        # A functional model identifies its nodes by the id of the layer.
        for old, new in swaps.values():
            for key in [key for key in keys if key.startswith(f"{id(old)}_")]:
                keys.remove(key)
                keys.add(key.replace(str(id(old)), str(id(new)), 1))


def _swapped(value: Any, swaps: dict[int, tuple[Any, Any]], seen: set[int]) -> Any:
    """`value` with new layers in it: the same object, changed in place, if possible."""
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
            # TensorFlow's wrapper, which cannot be saved after a mutation.
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
        return items  # TensorFlow's wrapper, as above
    list.__setitem__(value, slice(None), items)
    return value
