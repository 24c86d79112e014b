"""Deep copies of Sequential and functional models, with their weights.

`keras.models.clone_model` keeps neither weights nor layers shared between nested models, and fails
for compile arguments that it cannot rebuild; this module adds both.
"""

import logging
from typing import Any

import keras

from syncbn.compiled_models import carry_distribution

_LOG = logging.getLogger(__name__)

# Raised by Keras if a configuration cannot be serialized or deserialized.
_CONFIGURATION_ERRORS = (TypeError, ValueError, NotImplementedError, AttributeError, KeyError)


class UncopyableError(Exception):
    """The model cannot be rebuilt from its configuration; the message names the part and why."""


def is_functional(layer: Any) -> bool:
    """Whether `layer` is a model defined by a graph of layers (not a Sequential)."""
    return isinstance(layer, keras.Function) and isinstance(layer, keras.Model)


def is_copyable(model: keras.Model) -> bool:
    """Whether the layers define the whole model, without a custom `__init__` or `call`."""
    ours = (type(model).__init__, type(model).call)
    known = all(method.__module__.startswith("keras.") for method in ours)
    return known and (is_functional(model) or isinstance(model, keras.Sequential))


def copy_model(model: keras.Model) -> keras.Model:
    """A copy with the same names, order, shared layers, weights, trainable flags and dtypes.

    It is not compiled: see `carry_compilation`. Lambda layers and stateless operations are shared,
    not copied.

    Raises:
        UncopyableError: The model is subclassed, or one of its layers has no usable configuration.
    """
    if not is_copyable(model):
        raise UncopyableError(f"{type(model).__name__} {model.name!r} is a subclassed model")
    copy = _Copier().copy(model)
    _carry_state(model, copy)
    return copy


def carry_compilation(source: keras.Model, target: keras.Model) -> None:
    """Compiles `target` like `source`, and copies the state of the optimizer if its shapes match.

    If the loss or the optimizer cannot be rebuilt from its configuration, `target` stays
    uncompiled, with a warning.
    """
    if not source.compiled:
        return
    try:
        config = dict(source.get_compile_config())
        if config.get("jit_compile"):
            # Resolved for the old layers; "auto" resolves it for the new ones.
            config["jit_compile"] = "auto"
        target.compile_from_config(config)
    except _CONFIGURATION_ERRORS as error:
        _LOG.warning("model %r is not compiled, call compile(): %s", target.name, error)
        return
    carry_distribution(source, target)
    old, new = source.optimizer, target.optimizer
    if old is None or new is None or not (old.built and new.built):
        return
    if [v.shape for v in old.variables] == [v.shape for v in new.variables]:
        for before, after in zip(old.variables, new.variables, strict=True):
            after.assign(before)


class _Copier:
    """Copies each layer once, so that shared layers stay shared, at any depth."""

    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}

    def copy(self, layer: Any) -> Any:
        if id(layer) not in self._copies:
            self._copies[id(layer)] = self._new(layer)
        return self._copies[id(layer)]

    def _new(self, layer: Any) -> Any:
        if isinstance(layer, keras.Model) and is_copyable(layer):
            sequential = isinstance(layer, keras.Sequential)
            return self._sequential(layer) if sequential else self._functional(layer)
        if not isinstance(layer, keras.Layer) or type(layer) is keras.layers.Lambda:
            # Stateless; and the function of a Lambda may not be serializable.
            return layer
        try:
            copy = type(layer).from_config(layer.get_config())
        except _CONFIGURATION_ERRORS as error:
            raise UncopyableError(
                f"layer {layer.name!r} ({type(layer).__name__}) cannot be rebuilt from its "
                f"configuration: {str(error).strip().splitlines()[0]}"
            ) from error
        # A composite layer gives its sublayers, and so their variables, new names.
        parts = layer._flatten_layers(include_self=False)
        for before, after in zip(parts, copy._flatten_layers(include_self=False), strict=False):
            after.name = before.name
        return copy

    def _sequential(self, model: keras.Sequential) -> keras.Sequential:
        if model.built and not hasattr(model, "inputs"):
            raise UncopyableError(f"Sequential {model.name!r} was built without a single input")
        first = [input_like(model.inputs[0])] if model.built else []
        return type(model)([*first, *map(self.copy, model.layers)], name=model.name)

    def _functional(self, model: keras.Model) -> keras.Model:
        inputs = keras.tree.map_structure(input_like, model.input)
        # An uncompiled model over the same graph, since clone_model rebuilds the compilation.
        view = keras.Model(model.input, model.output, name=model.name)
        copy = keras.models.clone_model(view, input_tensors=inputs, clone_function=self.copy)
        if type(model) is type(copy):
            return copy
        return type(model)(copy.input, copy.output, name=model.name)


def input_like(tensor: Any) -> Any:
    """A new input with the shape, dtype, name and options of the one `tensor` came from."""
    layer = tensor._keras_history.operation
    return type(layer).from_config(layer.get_config()).output


def _carry_state(source: keras.Model, target: keras.Model) -> None:
    """Names, built state, trainable flags and the value of every variable, bit for bit."""
    for before, after in _pairs(source, target):
        after.name = before.name  # including sublayers created in `build`
        if before.built and not after.built:
            after.build_from_config(before.get_build_config())
    pairs = _pairs(source, target)
    for before, after in pairs:
        # Parents first: setting a flag sets those of the sublayers.
        if after.trainable != before.trainable:
            after.trainable = before.trainable
    old, new = source.variables, target.variables
    if [v.shape for v in old] != [v.shape for v in new]:
        raise UncopyableError(
            f"the configuration of {source.name!r} rebuilds {len(new)} variables of other shapes "
            f"than its {len(old)}"
        )
    for before, after in zip(old, new, strict=True):
        after.assign(before)


def _pairs(source: keras.Model, target: keras.Model) -> list[tuple[Any, Any]]:
    """Pairs of each layer and its copy, parents first."""
    old, new = _parents_first(source), _parents_first(target)
    if [type(layer) for layer in old] != [type(layer) for layer in new]:
        raise UncopyableError(
            f"the configuration of {source.name!r} rebuilds other layers than it has"
        )
    return list(zip(old, new, strict=True))


def _parents_first(model: keras.Model) -> list[Any]:
    return list(model._flatten_layers(include_self=True, recursive=True))
