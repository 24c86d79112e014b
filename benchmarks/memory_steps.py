"""The ranks of `benchmarks.memory`: measures held memory and peak of one layer."""

from pathlib import Path
from typing import Any

import keras
import psutil
import tensorflow as tf

from benchmarks.harness import rank
from benchmarks.layer_steps import FusedBatchNormalization
from syncbn import SyncBatchNormalization

LAYERS: dict[str, Any] = {
    "ours": SyncBatchNormalization,
    "keras": keras.layers.BatchNormalization,
    "fused": FusedBatchNormalization,
}
# Operations whose outputs share the memory of their inputs.
_ALIASES = ("Identity", "IdentityN", "StopGradient", "PreventGradient", "Reshape")


class Service(rank.Service):
    """Measures memory instead of time."""

    def measure(self, contender: str, case: dict[str, Any]) -> dict[str, float]:
        """Bytes of the inputs, other bytes held between forward and backward, and the peak.

        The peak is the increase of the resident memory in a first step, including inputs and
        outputs; TensorFlow's allocator keeps freed memory, so a second step would add nothing.
        """
        layer = LAYERS[contender]()
        layer.build((None, *case["shape"][1:]))
        weights = [layer.gamma.value, layer.beta.value]
        forward: list[tf.Operation] = []

        @tf.function(reduce_retracing=True)
        def step(inputs: tf.Tensor, upstream: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = layer(inputs, training=True)
            forward[:] = inputs.graph.get_operations()
            return tape.gradient(outputs, [inputs, *weights], output_gradients=upstream)

        specification = tf.TensorSpec(case["shape"], tf.float32)
        graph = step.get_concrete_function(specification, specification)
        held = held_bytes(graph.graph, forward)
        before = psutil.Process().memory_info().rss
        inputs, upstream = (tf.fill(case["shape"], value) for value in (1.0, 2.0))
        graph(inputs, upstream)
        return {
            "inputs": inputs.shape.num_elements() * 4,
            "held": held,
            "peak": _peak() - before,
        }


def held_bytes(graph: tf.Graph, forward: list[tf.Operation]) -> int:
    """Bytes of the tensors computed by `forward` and read later, without the arguments.

    TensorFlow frees a tensor when its last reader has run, so these are held in between.
    """
    names = {operation.name for operation in forward}
    held: dict[str, int] = {}
    for operation in graph.get_operations():
        if operation.name in names:
            continue
        for tensor in operation.inputs:
            while tensor.op.type in _ALIASES:
                tensor = tensor.op.inputs[
                    tensor.value_index if tensor.op.type == "IdentityN" else 0
                ]
            made_before = tensor.op.name in names and tensor.op.type not in ("Placeholder", "Const")
            if made_before and tensor.dtype != tf.resource:
                held[tensor.name] = (tensor.shape.num_elements() or 0) * tensor.dtype.size
    return sum(held.values())


def _peak() -> int:
    """The peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
