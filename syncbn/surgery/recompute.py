"""Replaces moving statistics by population statistics over a data set.

The statistics of a layer are those of its inputs at inference: all batch normalizations before it
run in inference mode, with their recomputed statistics. So each layer needs a separate pass, which
ends at that layer. PreciseBN (Wu and Johnson, 2021, https://arxiv.org/abs/2105.07576) needs a
single pass, but the preceding layers use batch statistics (and dropout is active), so its result
depends on the division of the data into batches and shards. Here it does not, and every layer is
exactly normalized over the data set. For data in a single batch both give the same result.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from syncbn import arguments, moments
from syncbn.communicators import Communicator
from syncbn.communicators import communicator as current_communicator
from syncbn.errors import SyncbnError
from syncbn.surgery.assigning import assign_statistics
from syncbn.surgery.batches import repeatable

_LOG = logging.getLogger(__name__)


class _TargetReached(BaseException):
    """Ends a forward pass at the target layer; not an Exception, so that no handler catches it."""


def recompute_statistics(model: keras.Model, dataset: Any, steps: int | None = None) -> keras.Model:
    """Sets the moving statistics of every batch normalization to those of a whole data set.

    Mean and population variance are weighted by counts (including masks and `batch_weights` in the
    calls of the model), accumulated in float64 over all ranks of the job: shards may be uneven or
    empty. Derived statistics are set as well: those of `renorm`, `zero_debias_moving_mean`, and
    `bessel_correction` (n/(n−1), n over all ranks). The result does not depend on the batch size or
    the division of the data. Nothing else of the model changes, and nothing at all if a pass fails.

    Layers are processed in call order, each in one eager pass over the data up to that layer: a
    model of L layers reads the data L times and runs half of the model on average. Use `steps` to
    sample a large data set. All calls of a layer count.

    Collective: every rank of a job calls it, with its own shard.

    Args:
        model: A built Keras model with Keras' layers, `SyncBatchNormalization`, or both. Changed in
            place.
        dataset: A `tf.data.Dataset`, a `keras.utils.PyDataset`, or any iterable that can be read
            several times and yields the same batches each time (a list, not a generator): `x`,
            `(x, y)` or `(x, y, sample_weight)`, of which only x is used. An array or tensor is
            split into batches.
        steps: Number of batches per pass; None: all.

    Returns:
        `model`.

    Raises:
        ValueError: The model is not built, the data set is not repeatable or infinite, `steps` is
            not positive, or no rank has data.
        syncbn.errors.SyncbnError: Another rank failed.
    """
    layers = _batch_normalizations(model)
    batches = repeatable(dataset, steps)
    if not layers:
        _LOG.warning("model %r has no batch normalization", model.name)
        return model
    communicator = current_communicator()
    before = [(v, keras.ops.convert_to_numpy(v)) for layer in layers for v in layer.variables]
    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)  # to observe layers inside a tf.function of the model
    try:
        order = _call_order(model, layers, batches, communicator)
        for number, (index, calls) in enumerate(order):
            channels = layers[index].moving_mean.shape[0]
            sums = partial(_sums, model, layers, layers[index], calls, batches)
            wire = _sum_or_fail(communicator, f"recompute_statistics/{number}", 6 * channels, sums)
            _assign(layers[index], moments.merge(tf.constant(wire), channels))
    except BaseException:
        for variable, value in before:
            variable.assign(value)
        raise
    finally:
        tf.config.run_functions_eagerly(eager)
    unused = [layers[i].name for i in range(len(layers)) if i not in {index for index, _ in order}]
    if unused:
        _LOG.warning("not changed, since the model never calls them: %s", ", ".join(unused))
    return model


def _batch_normalizations(model: Any) -> list[Any]:
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"recompute_statistics expects a keras.Model. Received: {type(model).__name__}"
        )
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    unbuilt = [layer.name for layer in layers if not layer.built]
    if unbuilt or not model.built:
        raise ValueError(
            "recompute_statistics expects a built model: call the model on a batch. Received: "
            f"model {model.name!r}, of which {', '.join(unbuilt) or 'itself'} is not built"
        )
    return layers


def _call_order(
    model: keras.Model,
    layers: list[Any],
    batches: Callable[[], Iterator[Any]],
    communicator: Communicator,
) -> list[tuple[int, int]]:
    """The indices of layers in the order of their first calls, each with its number of calls.

    All ranks use the order of the first rank with data.
    """
    size = len(layers)

    def mine() -> np.ndarray:
        table = np.zeros((communicator.size, 2 * size + 1))
        for inputs in batches():
            seen = _calls(model, layers, inputs)
            first = {index: seen.index(index) + 1 for index in set(seen)}
            row = [first.get(i, 0) for i in range(size)] + [seen.count(i) for i in range(size)]
            table[communicator.rank] = [*row, 1]
            break
        return table.ravel()

    table = _sum_or_fail(
        communicator, "recompute_statistics/order", communicator.size * (2 * size + 1), mine
    )
    rows = [row for row in table.reshape(communicator.size, -1) if row[-1]]
    if not rows:
        raise ValueError("dataset must hold at least one batch on some rank. Received: none")
    first, calls = rows[0][:size], rows[0][size:-1]
    return [(int(i), int(calls[i])) for i in np.argsort(first, kind="stable") if calls[i]]


def _calls(model: keras.Model, layers: list[Any], inputs: Any) -> list[int]:
    """The indices of the layers in the order of their calls."""
    seen: list[int] = []
    positions = {id(layer): index for index, layer in enumerate(layers)}
    with _observed(layers, lambda layer, *_: seen.append(positions[id(layer)])):
        model(inputs, training=False)
    return seen


def _sums(
    model: keras.Model,
    layers: list[Any],
    target: Any,
    calls: int,
    batches: Callable[[], Iterator[Any]],
) -> np.ndarray:
    """This rank's sums over the inputs of `target`, as `moments.local` packs them, shape (6C,)."""
    channels = target.moving_mean.shape[0]
    total = np.zeros((6, channels))
    left = 0

    def add(layer: Any, inputs: tf.Tensor, mask: Any, batch_weights: Any) -> None:
        nonlocal left
        if layer is not target:
            return
        layout = moments.Layout(inputs.shape.rank, layer.axis % inputs.shape.rank)
        weights = arguments.joint_weights(inputs, layout, mask, batch_weights)
        values = tf.cast(inputs, moments.compute_dtype(inputs.dtype))
        wire = moments.local(values, layout, weights).numpy()
        total[:2] += wire[: -4 * channels].reshape(2, -1)  # one count for all channels, or C
        total[2:] += wire[-4 * channels :].reshape(4, -1)
        left -= 1
        if left == 0:
            raise _TargetReached

    with _observed(layers, add):
        for inputs in batches():
            left = calls
            try:
                model(inputs, training=False)
            except _TargetReached:
                continue
    return total.ravel()


@contextmanager
def _observed(layers: list[Any], watch: Callable[..., None]) -> Iterator[None]:
    """Context in which `watch(layer, inputs, mask, batch_weights)` gets every call of the layers.

    The layers run in inference mode, regardless of their `training` argument.
    """

    def watcher(layer: Any) -> Callable[..., Any]:
        own = layer.call

        def call(
            inputs: Any,
            training: Any = None,
            mask: Any = None,
            batch_weights: Any = None,
            **options: Any,
        ) -> Any:
            watch(layer, tf.convert_to_tensor(inputs), mask, batch_weights)
            return own(inputs, training=False, **options)

        return call

    for layer in layers:
        layer.call = watcher(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def _sum_or_fail(
    communicator: Communicator, name: str, size: int, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """The sum of `compute()` over ranks; raises on all ranks if it fails on one.

    Otherwise the others would wait forever.
    """
    failure: BaseException | None = None
    try:
        wire = np.append(compute(), 0.0)
    except Exception as error:
        failure, wire = error, np.append(np.zeros(size), 1.0)
    total = communicator.all_reduce(tf.constant(wire), name).numpy()
    if failure is not None:
        raise failure
    if total[-1]:
        raise SyncbnError("recompute_statistics failed on another rank; see its log")
    return total[:-1]


def _assign(layer: Any, statistics: moments.Moments) -> None:
    count, mean, variance = (
        t.numpy() for t in (statistics.count, statistics.mean, statistics.variance)
    )
    if getattr(layer, "bessel_correction", False):
        variance = np.where(count > 1, variance * count / np.maximum(count - 1, 1), variance)
    counted = count > 0
    mean = np.where(counted, mean, layer.moving_mean.numpy())
    assign_statistics(layer, mean, np.where(counted, variance, layer.moving_variance.numpy()))
