"""Population statistics over a data set, in place of the moving averages of training.

Which statistics? Those of the inputs a layer meets at inference: before layer k every batch
normalization works in inference mode, with statistics already recomputed. So layers are done one
after the other, each in a pass of its own that ends at the layer. PreciseBN (Wu and Johnson, 2021,
https://arxiv.org/abs/2105.07576) needs one pass, but lets the layers before k use the statistics of
the batch at hand (and dropout drop), so that its result depends on how the data are cut into
batches and shards. Here it does not, and at the end every layer is exactly normalized over the data
set. For data in a single batch the two are the same.
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
from syncbn.communicators import Communicator, communicator
from syncbn.errors import SyncbnError
from syncbn.surgery.batches import repeatable
from syncbn.surgery.settling import settle

_LOG = logging.getLogger(__name__)


class _Reached(BaseException):
    """Ends a forward pass at the layer in question; no handler of ordinary errors may see it."""


def recompute_statistics(model: keras.Model, dataset: Any, steps: int | None = None) -> keras.Model:
    """Sets the moving statistics of every batch normalization to those of a whole data set.

    Mean and population variance are weighted by counts (masks and `batch_weights` of the model's
    own calls respected), summed in float64, and over all ranks of the job: shards may be uneven or
    empty. What a layer derives from them follows: `renorm`, `zero_debias_moving_mean`, and
    `bessel_correction` (n/(n−1), n over all ranks). They do not depend on the batch size, nor on
    how the data are divided. Nothing else of the model changes; if a pass fails, nothing at all.

    Layers are done in the order of their calls, each in one pass over the data up to that layer,
    eagerly: a model of L layers reads the data L times, half of it on average. Use `steps` for a
    sample of a large data set. A layer called several times counts all its calls.

    Collective: every rank of a job calls it, with its own shard.

    Args:
        model: A built Keras model, of Keras' layers, ours, or both. Changed in place.
        dataset: A `tf.data.Dataset`, a `keras.utils.PyDataset`, or any iterable that can be read
            several times and gives the same batches each time (a list, not a generator): `x`,
            `(x, y)` or `(x, y, sample_weight)`, of which only x is used. An array or tensor is
            read in batches.
        steps: Read this many batches of each pass; None: all.

    Returns:
        `model`.

    Raises:
        ValueError: The model is not built, the data set cannot be read several times or never
            ends, `steps` is not positive, or no rank has data.
        syncbn.errors.SyncbnError: Another rank failed.
    """
    layers = _built_layers(model)
    batches = repeatable(dataset, steps)
    if not layers:
        _LOG.warning("model %r has no batch normalization", model.name)
        return model
    ranks = communicator()
    before = [(v, keras.ops.convert_to_numpy(v)) for layer in layers for v in layer.variables]
    eager = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)  # so that a tf.function inside the model is seen into
    try:
        order = _agreed_order(model, layers, batches, ranks)
        for number, (index, calls) in enumerate(order):
            channels = layers[index].moving_mean.shape[0]
            sums = partial(_sums, model, layers, layers[index], calls, batches)
            wire = _shared(ranks, f"recompute_statistics/{number}", 6 * channels, sums)
            _settle(layers[index], moments.merge(tf.constant(wire), channels))
    except BaseException:
        for variable, value in before:
            variable.assign(value)
        raise
    finally:
        tf.config.run_functions_eagerly(eager)
    unused = [layers[i].name for i in range(len(layers)) if i not in {index for index, _ in order}]
    if unused:
        _LOG.warning("left as they are, since the model never calls them: %s", ", ".join(unused))
    return model


def _built_layers(model: Any) -> list[Any]:
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
            "recompute_statistics expects a built model: call it once on a batch. Received: "
            f"model {model.name!r}, of which {', '.join(unbuilt) or 'itself'} is not built"
        )
    return layers


def _agreed_order(
    model: keras.Model,
    layers: list[Any],
    batches: Callable[[], Iterator[Any]],
    ranks: Communicator,
) -> list[tuple[int, int]]:
    """The layers' indices in the order of their first calls, each with its number of calls.

    A rank without data cannot know it, so all take that of the first rank that does.
    """
    size = len(layers)

    def mine() -> np.ndarray:
        table = np.zeros((ranks.size, 2 * size + 1))
        for inputs in batches():
            seen = _calls(model, layers, inputs)
            first = {index: seen.index(index) + 1 for index in set(seen)}
            row = [first.get(i, 0) for i in range(size)] + [seen.count(i) for i in range(size)]
            table[ranks.rank] = [*row, 1]
            break
        return table.ravel()

    table = _shared(ranks, "recompute_statistics/order", ranks.size * (2 * size + 1), mine)
    rows = [row for row in table.reshape(ranks.size, -1) if row[-1]]
    if not rows:
        raise ValueError("dataset must hold at least one batch on some rank. Received: none")
    first, calls = rows[0][:size], rows[0][size:-1]
    return [(int(i), int(calls[i])) for i in np.argsort(first, kind="stable") if calls[i]]


def _calls(model: keras.Model, layers: list[Any], inputs: Any) -> list[int]:
    """The indices of the layers in the order of their calls."""
    seen: list[int] = []
    positions = {id(layer): index for index, layer in enumerate(layers)}
    with _watched(layers, lambda layer, *_: seen.append(positions[id(layer)])):
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
            raise _Reached

    with _watched(layers, add):
        for inputs in batches():
            left = calls
            try:
                model(inputs, training=False)
            except _Reached:
                continue
    return total.ravel()


@contextmanager
def _watched(layers: list[Any], watch: Callable[..., None]) -> Iterator[None]:
    """While it lasts `watch(layer, inputs, mask, batch_weights)` sees every call of the layers,
    which work in inference mode whatever they are told."""

    def watcher(layer: Any) -> Callable[..., Any]:
        own = layer.call

        def call(
            inputs: Any, training: Any = None, mask: Any = None, batch_weights: Any = None
        ) -> Any:
            watch(layer, tf.convert_to_tensor(inputs), mask, batch_weights)
            return own(inputs, training=False)

        return call

    for layer in layers:
        layer.call = watcher(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def _shared(
    ranks: Communicator, name: str, size: int, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """The sum over ranks of what each computes; a rank that fails takes all others along.

    Otherwise these would wait for it for ever.
    """
    failure: BaseException | None = None
    try:
        wire = np.append(compute(), 0.0)
    except Exception as error:
        failure, wire = error, np.append(np.zeros(size), 1.0)
    total = ranks.all_reduce(tf.constant(wire), name).numpy()
    if failure is not None:
        raise failure
    if total[-1]:
        raise SyncbnError("recompute_statistics failed on another rank; its log says why")
    return total[:-1]


def _settle(layer: Any, statistics: moments.Moments) -> None:
    count, mean, variance = (
        t.numpy() for t in (statistics.count, statistics.mean, statistics.variance)
    )
    if getattr(layer, "bessel_correction", False):
        variance = np.where(count > 1, variance * count / np.maximum(count - 1, 1), variance)
    counted = count > 0
    mean = np.where(counted, mean, layer.moving_mean.numpy())
    settle(layer, mean, np.where(counted, variance, layer.moving_variance.numpy()))
