"""The steps of `benchmarks.latency`: successive sums of small vectors."""

from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.harness import rank
from syncbn.communicators import Communicator
from syncbn.communicators.mpi import import_mpi


class Service(rank.TimingService):
    """Contenders: `ours`, inside a tf.function, and `raw MPI` from Python, without TensorFlow."""

    def make(self, contender: str, case: dict[str, Any]) -> rank.Step:
        values, chain = case["values"], case["chain"]
        if contender == "raw MPI":
            world = import_mpi().COMM_WORLD
            source, target = np.ones(values), np.empty(values)

            def raw() -> None:
                for _ in range(chain):
                    world.Allreduce(source, target)

            return raw
        return chain_of_sums(self.communicator, values, chain)


def chain_of_sums(communicator: Communicator, values: int, chain: int) -> rank.Step:
    """A tf.function of `chain` all-reduces of a float64 vector, each of the previous result."""
    zeros = tf.zeros([values], tf.float64)  # sums of zeros do not grow

    @tf.function
    def sums(vector: tf.Tensor) -> tf.Tensor:
        for index in range(chain):
            vector = communicator.all_reduce(vector, f"sums/{values}/{index}")
        return vector

    return lambda: sums(zeros).numpy()
