"""Counts the collectives of a training step in its traced graph."""

from typing import Any

import numpy as np
import tensorflow as tf

from syncbn import SyncBatchNormalization
from tests.syncbn.worlds import StrategyWorld, World

CHANNELS = 8
# All operations that send data to other ranks, including host calls.
COLLECTIVES = (
    "SyncbnMpiAllReduce",
    "SyncbnDirectAllReduce",
    "HorovodAllreduce",
    "HorovodGroupedAllreduce",
    "HorovodAllgather",
    "HorovodBroadcast",
    "CollectiveReduce",
    "CollectiveReduceV2",
    "CollectiveReduceV3",
    "CollectiveGatherV2",
    "CollectiveBcastSendV2",
    "CollectiveBcastRecvV2",
    "PyFunc",
    "PyFuncStateless",
    "EagerPyFunc",
)


def in_graph(graph: tf.Graph) -> list[tuple[str, int | None]]:
    """Type and message bytes (None: a host call, or unknown) of each collective, in order."""
    definition = graph.as_graph_def(add_shapes=True)
    nodes = [*definition.node]
    for function in definition.library.function:
        nodes.extend(function.node_def)
    found: list[tuple[str, int | None]] = []
    for node in nodes:
        if node.op not in COLLECTIVES:
            continue
        shapes = node.attr["_output_shapes"].list.shape
        size = None
        if "T" in node.attr and len(shapes) == 1 and not shapes[0].unknown_rank:
            sizes = [d.size for d in shapes[0].dim]
            # The gathered tensor has a row per rank; the message of this rank is one row.
            elements = np.prod(sizes[1:] if node.op.startswith("CollectiveGather") else sizes)
            size = int(elements * tf.as_dtype(node.attr["T"].type).size)
        found.append((node.op, size))
    return found


def traced_step(world: World, layer: Any, training: bool) -> list[tuple[str, int | None]]:
    """The collectives in the graph of one step of `layer`, of all local replicas."""

    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
        return tape.gradient(y, [x, layer.gamma.value])

    x = tf.constant(np.random.default_rng(0).normal(size=(6, CHANNELS)), tf.float32)

    @tf.function
    def everywhere(x: tf.Tensor) -> Any:
        return world.strategy.run(step, args=(x,)) if isinstance(world, StrategyWorld) else step(x)

    with world.scope():
        return in_graph(everywhere.get_concrete_function(x).graph)


def count(world: World) -> dict[str, Any]:
    """The collectives of a training step, an inference step and a frozen layer's step."""
    with world.scope():
        layer = SyncBatchNormalization()
        layer.build((None, CHANNELS))
        frozen = SyncBatchNormalization(trainable=False)
        frozen.build((None, CHANNELS))
    return {
        "training": traced_step(world, layer, training=True),
        "inference": traced_step(world, layer, training=False),
        "frozen": traced_step(world, frozen, training=True),
    }
