"""The types of the operations in a graph, and which of them communicate."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

# Collectives, and calls into Python, which an exported graph must not contain.
COMMUNICATION = re.compile(r"Collective|Horovod|Nccl|AllReduce|PyFunc")


def operations(nodes: Iterable[Any], functions: Iterable[Any]) -> set[str]:
    inside = [node.op for function in functions for node in function.node_def]
    return {*(node.op for node in nodes), *inside}


def operations_of_export(directory: Path) -> set[str]:
    """The types of all operations of a SavedModel, including its functions."""
    model = saved_model_pb2.SavedModel()
    model.ParseFromString((directory / "saved_model.pb").read_bytes())
    found: set[str] = set()
    for part in model.meta_graphs:
        found |= operations(part.graph_def.node, part.graph_def.library.function)
    return found


def operations_of_call(model: keras.Model, inputs: Any, training: bool) -> set[str]:
    call = tf.function(lambda x: model(x, training=training))
    graph = call.get_concrete_function(tf.constant(inputs)).graph.as_graph_def()
    return operations(graph.node, graph.library.function)


def communicating(found: set[str]) -> set[str]:
    assert len(found) > 5
    return {name for name in found if COMMUNICATION.search(name)}
