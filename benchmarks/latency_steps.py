"""The steps of `benchmarks.latency`: sums of small vectors, one after the other."""

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
        return chain_of_sums(self.ranks, values, chain)


def chain_of_sums(ranks: Communicator, values: int, chain: int) -> rank.Step:
    """A tf.function of `chain` all-reduces of float64 vectors, each of the result of the last."""
    zeros = tf.zeros([values], tf.float64)  # zeros stay zeros, however often they are summed

    @tf.function
    def sums(vector: tf.Tensor) -> tf.Tensor:
        for index in range(chain):
            vector = ranks.all_reduce(vector, f"sums/{values}/{index}")
        return vector

    return lambda: sums(zeros).numpy()
