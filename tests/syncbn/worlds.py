"""Runs a step on every replica of any kind of world.

A world holds some of the ranks: a process of a job holds its own, a MirroredStrategy in one process
holds all. A check passes arguments for every rank and gets results from the ranks held here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from syncbn.communicators import Communicator

Step = Callable[..., Any]
Runner = Callable[[Sequence[Sequence[Any]]], list[Any]]


class World(ABC):
    """Replicas that run the same step.

    Attributes:
        size: Number of replicas.
        held: The ranks whose results `compile` returns here.
    """

    size: int
    held: list[int]

    @abstractmethod
    def scope(self) -> AbstractContextManager[Any]:
        """The context in which to create models."""

    @abstractmethod
    def compile(self, step: Step, graph: bool) -> Runner:
        """A function from each rank's arguments to the results of the held ranks.

        The step runs eagerly, or as one tf.function.
        """

    @abstractmethod
    def values(self, variable: Any) -> list[np.ndarray]:
        """The value of a Keras variable on each held rank."""


class ProcessWorld(World):
    """This process, one rank of a communicator."""

    def __init__(self, communicator: Communicator) -> None:
        self.size = communicator.size
        self.held = [communicator.rank]

    def scope(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def compile(self, step: Step, graph: bool) -> Runner:
        function = tf.function(step) if graph else step
        rank = self.held[0]
        return lambda arguments: [_to_numpy(function(*_to_tensors(arguments[rank])))]

    def values(self, variable: Any) -> list[np.ndarray]:
        return [variable.numpy()]


class StrategyWorld(World):
    """The replicas of a tf.distribute strategy, each running in `strategy.run`."""

    def __init__(self, strategy: tf.distribute.Strategy, held: Sequence[int]) -> None:
        self.strategy = strategy
        self.size = strategy.num_replicas_in_sync
        self.held = list(held)

    def scope(self) -> AbstractContextManager[Any]:
        return self.strategy.scope()

    def compile(self, step: Step, graph: bool) -> Runner:
        def everywhere(*arguments: Any) -> Any:
            return self.strategy.run(step, args=arguments)

        function = tf.function(everywhere) if graph else everywhere

        def run(arguments: Sequence[Sequence[Any]]) -> list[Any]:
            tensors = [_to_tensors(per_rank) for per_rank in arguments]
            distributed = [
                self.strategy.experimental_distribute_values_from_function(
                    lambda context, i=i: tensors[context.replica_id_in_sync_group][i]
                )
                for i in range(len(tensors[0]))
            ]
            with self.strategy.scope():
                results = function(*distributed)
            return [
                tf.nest.map_structure(lambda value, k=k: self._local(value)[k], results)
                for k in range(len(self.held))
            ]

        return run

    def values(self, variable: Any) -> list[np.ndarray]:
        return self._local(variable.value)

    def _local(self, value: Any) -> list[np.ndarray]:
        return [v.numpy() for v in self.strategy.experimental_local_results(value)]


@cache
def mirrored(size: int) -> StrategyWorld:
    """`size` replicas on the logical CPUs of this process.

    Two replicas sum with the collectives of the strategy. TensorFlow numbers these per strategy and
    identifies operations by number, so a process can have only one such strategy, of one size:
    other sizes sum on one device.
    """
    devices = [f"CPU:{i}" for i in range(size)]
    operations = None if size == 2 else tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=operations)
    return StrategyWorld(strategy, range(size))


def _to_tensors(arguments: Sequence[Any]) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(argument) for argument in arguments]


def _to_numpy(results: Any) -> Any:
    return tf.nest.map_structure(lambda value: value.numpy(), results)
