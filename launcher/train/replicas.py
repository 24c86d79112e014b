"""The replicas of this process: usually one, or several devices under MirroredStrategy.

The training program calls the same methods in both cases. In a job of several processes, each
process has one replica, and a communicator connects them.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from launcher.errors import UsageError

# Maps tensors (features, labels, scalars...) of one replica to a vector of sums.
Body = Callable[..., tf.Tensor]


class Replicas:
    """One replica: this process and its device.

    Attributes:
        count: Number of replicas.
    """

    count = 1

    def scope(self) -> AbstractContextManager[Any]:
        """The context in which variables must be created."""
        return nullcontext()

    def compiled(self, body: Body, signature: Sequence[tf.TensorSpec]) -> Callable[..., np.ndarray]:
        """Compiles `body` to a graph that is traced once, takes arrays, and returns the sums."""
        graph = tf.function(body, input_signature=signature, autograph=False)
        return lambda *arrays: graph(*arrays).numpy()


def make_replicas(count: int, processes: int) -> Replicas:
    """The replicas that `--replicas` asks for. Must run before TensorFlow initialises its devices.

    Args:
        count: Replicas of this process.
        processes: Processes of the job.

    Raises:
        UsageError: Several replicas in a process of several, or fewer GPUs than replicas.
    """
    if count == 1:
        return Replicas()
    if processes > 1:
        raise UsageError(
            f"--replicas is for a single process; this job has {processes} with one replica each. "
            f"Received: --replicas {count}"
        )
    return MirroredReplicas(count)


class MirroredReplicas(Replicas):
    """Several GPUs of this process, or logical CPU devices where there is no GPU.

    Args:
        count: Number of replicas.

    Raises:
        UsageError: The machine has fewer GPUs than replicas.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        gpus = tf.config.list_physical_devices("GPU")
        if gpus and len(gpus) < count:
            raise UsageError(f"--replicas: this machine has {len(gpus)} GPUs. Received: {count}")
        if not gpus:
            cpu = tf.config.list_physical_devices("CPU")[0]
            parts = [tf.config.LogicalDeviceConfiguration()] * count
            tf.config.set_logical_device_configuration(cpu, parts)
        kind = "GPU" if gpus else "CPU"
        self._strategy = tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(count)])

    def scope(self) -> AbstractContextManager[Any]:
        return self._strategy.scope()

    def compiled(self, body: Body, signature: Sequence[tf.TensorSpec]) -> Callable[..., np.ndarray]:
        """Features and labels, the first two arrays, are split by rows over the replicas."""
        strategy = self._strategy

        @tf.function(reduce_retracing=True, autograph=False)
        def graph(*arguments: Any) -> tf.Tensor:
            return strategy.reduce("SUM", strategy.run(body, arguments), axis=None)

        def call(features: np.ndarray, labels: np.ndarray, *scalars: tf.Tensor) -> np.ndarray:
            return graph(self._split(features), self._split(labels), *scalars).numpy()

        return call

    def _split(self, rows: np.ndarray) -> Any:
        pieces = np.array_split(rows, self.count)
        return self._strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(pieces[context.replica_id_in_sync_group])
        )
