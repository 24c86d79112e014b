"""Two ranks start as worlds of one and join to one world: a graph stays valid after the resize.

`python -m tests.syncbn.resize_program RANK PORT`, with Horovod's rendezvous server on PORT. Prints
one JSON line.
"""

import json
import os
import sys
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

import syncbn
from syncbn.communicators import shutdown

WORLD = {
    "HOROVOD_SIZE": "2",
    "HOROVOD_LOCAL_SIZE": "2",
    "HOROVOD_CROSS_RANK": "0",
    "HOROVOD_CROSS_SIZE": "1",
    "HOROVOD_HOSTNAME": "localhost",
    "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
    "HOROVOD_GLOO_IFACE": "lo",
}


def main(rank: int, port: str) -> dict[str, Any]:
    traces = []
    communicator = syncbn.init("horovod")
    layer = syncbn.SyncBatchNormalization(momentum=0.0)
    layer.build((None, 1))

    @tf.function
    def step(x: tf.Tensor) -> tf.Tensor:
        traces.append(communicator.size)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, x, output_gradients=y)

    x = tf.constant([[1.0 + 10.0 * rank], [3.0 + 10.0 * rank]])
    step(x)
    alone = [float(layer.moving_mean.numpy()[0]), float(layer.moving_variance.numpy()[0])]

    hvd.shutdown()
    shutdown()
    os.environ.update(WORLD | {"HOROVOD_RANK": str(rank), "HOROVOD_LOCAL_RANK": str(rank)})
    os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"] = port
    together = syncbn.init("horovod")
    step(x)
    joined = [float(layer.moving_mean.numpy()[0]), float(layer.moving_variance.numpy()[0])]
    return {"alone": alone, "joined": joined, "traces": traces, "size": together.size}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), sys.argv[2])))
