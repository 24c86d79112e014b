"""The error of the batch variance for a mean far from zero: syncbn, Keras and Horovod.

launcher run -np 2 --backend mpi -- python -m benchmarks.small_batch.numerics FILE

Every curve runs the code of its project. syncbn: the layer, over MPI. Horovod: the `_moments` of
its layer, over Horovod; the local moments come from `tf.nn.moments` as in Keras 2, because Keras 3
has no such method. Keras: the function that its layer calls, on two replicas of one process.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.small_batch.store import VarianceError
from launcher.train.environment import load_tensorflow

load_tensorflow()

import keras  # noqa: E402 - after TensorFlow's threads are configured
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import syncbn  # noqa: E402

_RATIOS = tuple(float(ratio) for ratio in 10.0 ** np.arange(0, 6.5, 0.5))
_RANKS = 2
_ROWS, _CHANNELS = 4096, 16

# Maps the shards of all ranks and this rank to the variance of each channel, float64.
Variance = Callable[[list[np.ndarray], int], np.ndarray]


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * _RANKS
    tf.config.set_logical_device_configuration(cpu, parts)
    communicator = syncbn.init("mpi")
    implementations: dict[str, Variance] = {"syncbn": _syncbn_variance}
    if find_spec("horovod") is not None:
        implementations["horovod"] = _horovod_variance()
    errors = _errors(implementations, communicator.rank)
    if communicator.rank == 0:  # last, since the other rank would use a core while waiting
        errors += _errors({"keras": _keras_variance()}, communicator.rank)
        Path(sys.argv[1]).write_text(json.dumps([asdict(error) for error in errors]))


def _errors(implementations: Mapping[str, Variance], rank: int) -> list[VarianceError]:
    errors = []
    for ratio in _RATIOS:
        shards = _shards(ratio)
        exact = np.concatenate(shards).astype(np.float64).var(axis=0)
        for name, variance in implementations.items():
            error = np.abs(variance(shards, rank) / exact - 1.0)
            errors.append(VarianceError(name, ratio, float(np.median(error)), float(error.max())))
    return errors


def _shards(ratio: float) -> list[np.ndarray]:
    """One float32 (rows, channels) array for each rank."""
    values = np.random.default_rng(0).normal(ratio, 1.0, (_RANKS, _ROWS, _CHANNELS))
    return list(values.astype(np.float32))


def _syncbn_variance(shards: list[np.ndarray], rank: int) -> np.ndarray:
    layer = syncbn.SyncBatchNormalization(momentum=0.0)  # the moving variance is the last batch's
    layer(shards[rank], training=True)
    return layer.moving_variance.numpy().astype(np.float64)


def _horovod_variance() -> Variance:
    import horovod.tensorflow as hvd
    from horovod.tensorflow.sync_batch_norm import SyncBatchNormalization

    hvd.init()

    class LocalMoments(keras.layers.BatchNormalization):
        def _moments(self, inputs: tf.Tensor, axes: list[int], keep_dims: bool) -> Any:
            return tf.nn.moments(inputs, axes, keepdims=keep_dims)

    class Runnable(SyncBatchNormalization, LocalMoments):
        def __init__(self) -> None:
            # Horovod's __init__ passes an argument that Keras 3 does not have.
            LocalMoments.__init__(self)

    def variance(shards: list[np.ndarray], rank: int) -> np.ndarray:
        _, variance = Runnable()._moments(tf.constant(shards[rank]), [0], keep_dims=False)
        return variance.numpy().astype(np.float64)

    return variance


def _keras_variance() -> Variance:
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(_RANKS)])

    @tf.function
    def moments(values: Any) -> Any:
        return strategy.run(keras.ops.moments, [values], {"axes": [0], "synchronized": True})

    def variance(shards: list[np.ndarray], rank: int) -> np.ndarray:
        values = strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(shards[context.replica_id_in_sync_group])
        )
        _, variance = moments(values)
        return strategy.experimental_local_results(variance)[rank].numpy().astype(np.float64)

    return variance


if __name__ == "__main__":
    main()
