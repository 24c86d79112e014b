"""Converts models from Keras' batch normalization to the synchronized one, and back."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import keras

from syncbn.layer import SyncBatchNormalization
from syncbn.surgery.assigning import assign_debiasing, assign_renorm
from syncbn.surgery.copying import UncopyableError, carry_compilation, copy_model, is_copyable
from syncbn.surgery.fuse import adds_residual, fused, unfused
from syncbn.surgery.replacing import build_with_weights_of, replace_layers

_LOG = logging.getLogger(__name__)

# Passed as objects: a configuration cannot represent all functions and communicators.
_OBJECTS = (
    "beta_initializer",
    "gamma_initializer",
    "moving_mean_initializer",
    "moving_variance_initializer",
    "beta_regularizer",
    "gamma_regularizer",
    "beta_constraint",
    "gamma_constraint",
)
_OWN_OBJECTS = ("communicator", "adjustment", "activation")
_OWN = (
    *_OWN_OBJECTS,
    "group_size",
    "virtual_batch_size",
    "zero_debias_moving_mean",
    "bessel_correction",
)

# These determine the weights of a layer, which must not change.
_FIXED = ("self", "kwargs", "axis", "center", "scale")
_CHANGEABLE = tuple(
    name
    for name in inspect.signature(SyncBatchNormalization.__init__).parameters
    if name not in _FIXED
)


def convert_sync_batchnorm(
    model: keras.Model, *, fuse: bool = False, **layer_arguments: Any
) -> keras.Model:
    """Replaces every batch normalization of a model by a synchronized one.

    Each `keras.layers.BatchNormalization` becomes a `syncbn.SyncBatchNormalization` with the same
    name, place, weights (bit for bit), trainable flag, dtype policy, regularizers and arguments. A
    layer that is already a `SyncBatchNormalization` keeps its arguments except those given, so the
    conversion is idempotent. Subclasses of either are not replaced, since they may rely on methods
    that they override; the log names them.

    **Sequential and functional models** (nested at any depth, with shared layers, several inputs
    and outputs) are copied: the original and its weights do not change. Custom layers inside are
    copied through their configuration, then changed.

    **Subclassed models are changed in place and returned**, since they cannot be rebuilt: every
    attribute, list, tuple, dict and set of layers, at any depth. The same holds for a functional
    model with a layer that has no configuration, with a warning. The variables remain the same
    objects, and references outside the model still point to the old layers.

    A compiled model is returned compiled, with the state of its optimizer, including a
    `DistributedOptimizer`; if the loss or the optimizer has no configuration, the copy is not
    compiled, with a warning.

    **With `fuse`** the copied models compute in one pass what follows a batch normalization that
    is called once and whose outputs nothing else uses: a ReLU, ReLU6 or leaky ReLU (a layer, an
    `Activation` or a function), or the addition of one other tensor of the same shape (`Add` or
    `+`) followed by such an activation. Outputs and gradients stay the same, except that half
    precision is rounded once instead of after every layer. Weights keep their paths, their order
    and the place in saved files; layers that only pass tensors on (`FusedActivation`,
    `FusedInput`, `FusedSum`) are in place of the others. Shared layers, other sums and models that
    are changed in place are not fused.

    Args:
        model: A Keras model, built or not, compiled or not.
        fuse: Whether to fuse batch normalizations with the activations after them.
        **layer_arguments: Arguments of `SyncBatchNormalization` for all its batch normalizations,
            for example `communicator="mpi"`, `group_size=4`, `momentum=0.9`. Not `axis`, `center`,
            `scale`, `name`, `dtype` or `trainable`, which each layer keeps.

    Returns:
        The converted model: a copy, or `model` itself if it was changed in place.

    Raises:
        ValueError: `model` is not a Keras model, or an argument is unknown or invalid.
    """
    _check_model("convert_sync_batchnorm", model)
    for name in layer_arguments:
        if name not in _CHANGEABLE:
            raise ValueError(
                f"layer_arguments must be among {', '.join(_CHANGEABLE)}. Received: {name}="
                f"{layer_arguments[name]!r}"
            )
    SyncBatchNormalization(**layer_arguments)  # raises for invalid arguments

    def converted(layer: keras.Layer) -> keras.Layer | None:
        if type(layer) is SyncBatchNormalization:
            arguments = _arguments(layer)
        elif type(layer) is keras.layers.BatchNormalization:
            arguments = {**_arguments(layer), "synchronized": True}
        else:
            return None
        return _rebuilt(layer, SyncBatchNormalization, {**arguments, **layer_arguments})

    target = _copied(model)
    count = _replace(target, converted)
    if fuse and target is not model:
        target = fused(target)
    return _finished(model, target, count)


def revert_sync_batchnorm(model: keras.Model) -> keras.Model:
    """Replaces every synchronized batch normalization of a model by Keras' layer.

    The inverse of `convert_sync_batchnorm`, also with `fuse`, with the same rules for what is
    copied and what is changed in place. Weights, names, trainable flags and inference do not
    change. Training statistics are then local to a process, and options that Keras' layer lacks
    (`group_size`, `virtual_batch_size`, `adjustment`, `zero_debias_moving_mean`,
    `bessel_correction`, and the communicator) are dropped.

    Returns:
        The model with Keras' layers: a copy, or `model` itself if it was changed in place.

    Raises:
        ValueError: `model` is not a Keras model, or a layer that `fuse` did not create has an
            `activation` or a `residual`, which Keras' layer does not support.
    """
    _check_model("revert_sync_batchnorm", model)

    def reverted(layer: keras.Layer) -> keras.Layer | None:
        if type(layer) is not SyncBatchNormalization:
            return None
        arguments = {k: v for k, v in _arguments(layer).items() if k not in _OWN}
        return _rebuilt(
            layer, keras.layers.BatchNormalization, {**arguments, "synchronized": False}
        )

    target = _copied(model)
    if target is not model:
        target = unfused(target)
    for layer in target._flatten_layers():
        if type(layer) is SyncBatchNormalization:
            _check_revertible(layer)  # raises before anything is changed in place
    return _finished(model, target, _replace(target, reverted))


def _check_revertible(layer: SyncBatchNormalization) -> None:
    if adds_residual(layer):
        raise ValueError(
            "keras.layers.BatchNormalization adds no residual: put a layer keras.layers.Add after "
            "it first. "
            f"Received: layer {layer.name!r} called with residual"
        )
    if layer.activation is not keras.activations.linear:
        raise ValueError(
            "keras.layers.BatchNormalization has no activation: put a layer "
            "keras.layers.Activation after it first. Received: layer "
            f"{layer.name!r} with activation={keras.activations.serialize(layer.activation)!r}"
        )


def _check_model(function: str, model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ValueError(f"{function} expects a keras.Model. Received: {type(model).__name__}")


def _copied(model: keras.Model) -> keras.Model:
    """A copy, or `model` itself if it must be changed in place."""
    if is_copyable(model):
        try:
            return copy_model(model)
        except UncopyableError as reason:
            _LOG.warning("model %r is changed in place: %s", model.name, reason)
    return model


def _replace(target: keras.Model, replacement: Callable[[keras.Layer], keras.Layer | None]) -> int:
    """Replaces the batch normalizations of `target`; returns their number."""
    count = replace_layers(target, replacement)
    left = [
        layer.name
        for layer in target._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        and type(layer) not in (keras.layers.BatchNormalization, SyncBatchNormalization)
    ]
    if left:
        _LOG.warning("not replaced, since they are subclasses: %s", ", ".join(left))
    _LOG.info("model %r: replaced %d batch normalizations", target.name, count)
    return count


def _finished(model: keras.Model, target: keras.Model, count: int) -> keras.Model:
    """`target`, compiled like `model`, after the replacement of `count` layers."""
    if target is not model:
        carry_compilation(model, target)
    elif count and model.compiled:
        # The new layers may differ in their support of XLA: makes Keras resolve "auto" again.
        model._jit_compile = None
    return target


def _arguments(layer: Any) -> dict[str, Any]:
    """The constructor arguments of `layer`."""
    arguments = layer.get_config()
    objects = (*_OBJECTS, *_OWN_OBJECTS) if type(layer) is SyncBatchNormalization else _OBJECTS
    arguments |= {name: getattr(layer, name) for name in objects}
    return {**arguments, "dtype": layer.dtype_policy}


def _rebuilt(old: Any, kind: type[keras.Layer], arguments: dict[str, Any]) -> keras.Layer:
    """A layer of another class with the same variables."""
    new = kind(**arguments)
    if not old.built:
        return new
    build_with_weights_of(new, old)
    mean, variance = (keras.ops.convert_to_numpy(v) for v in (old.moving_mean, old.moving_variance))
    if new.renorm and not old.renorm:
        assign_renorm(new, mean, variance)
    if not getattr(old, "zero_debias_moving_mean", False) and mean.any():
        assign_debiasing(new, mean)
    return new
