"""Eager tensors in graphs within graphs."""

from typing import Any

import tensorflow as tf


def captured(tensor: tf.Tensor) -> tf.Tensor:
    """An eager tensor as the graph that is being traced may use it; eagerly, the tensor itself.

    The gradient of a `tf.cond` may hold tensors of the graph around it, but no eager ones
    (TensorFlow 2.21 ends with "Tensor.graph is undefined"): so the tensor is taken in from the
    outermost graph inwards.
    """
    graphs = []
    graph: Any = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while hasattr(graph, "outer_graph"):
        graphs.append(graph)
        graph = graph.outer_graph
    for graph in reversed(graphs):
        tensor = graph.capture(tensor)
    return tensor
