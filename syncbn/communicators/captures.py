"""Captures of eager tensors by nested graphs."""

from typing import Any

import tensorflow as tf


def captured(tensor: tf.Tensor) -> tf.Tensor:
    """The capture of an eager tensor in the graph being traced; in eager mode the tensor itself.

    The gradient of a `tf.cond` can capture tensors of the enclosing graph, but not eager ones
    (TensorFlow 2.21 fails with "Tensor.graph is undefined"), so the tensor is captured by each
    graph from the outermost to the innermost.
    """
    graphs = []
    graph: Any = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while hasattr(graph, "outer_graph"):
        graphs.append(graph)
        graph = graph.outer_graph
    for graph in reversed(graphs):
        tensor = graph.capture(tensor)
    return tensor
