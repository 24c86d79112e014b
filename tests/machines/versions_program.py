"""What a rank runs on an installed TensorFlow: `python -m tests.machines.versions_program BACKEND`.

Prints one JSON line: which path the layer took, its communicator, and the reports of the oracle
matrix.
"""

import dataclasses
import json
import sys

import keras
import tensorflow as tf

import syncbn
from syncbn import native
from tests.syncbn import matrix
from tests.syncbn.worlds import ProcessWorld


def main(backend: str) -> dict[str, object]:
    communicator = syncbn.init(backend)
    layer = syncbn.SyncBatchNormalization()
    layer.build((None, 4))
    call = tf.function(lambda x: layer(x, training=True))
    operations = call.get_concrete_function(tf.ones([2, 4])).graph.get_operations()
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "status": dataclasses.asdict(native.status()),
        "operations": sorted({op.type for op in operations if op.type.startswith("Syncbn")}),
        "matrix": matrix.run(ProcessWorld(communicator), tuple(matrix.POLICIES)),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
