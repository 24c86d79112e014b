"""Checks the installed Horovod in its own process: `python -m launcher.horovod_build.probe`.

Prints one JSON line: its version, the TensorFlow it was built for, and the libraries it was built
with; fails if a one-rank all-reduce over Gloo does not return its input.
"""

import importlib.metadata
import json
from pathlib import Path

import horovod
import horovod.tensorflow as hvd
import tensorflow as tf


def main() -> None:
    """Prints what is installed after one all-reduce through it."""
    hvd.init()
    if hvd.allreduce(tf.constant([2.0, 3.0]), op=hvd.Sum).numpy().tolist() != [2.0, 3.0]:
        raise RuntimeError("an all-reduce over one rank changed its input")
    hvd.shutdown()
    built_for = json.loads(Path(horovod.__file__).with_name("metadata.json").read_text())
    found = {
        "version": importlib.metadata.version("horovod"),
        "tensorflow": built_for["tensorflow"],
        "mpi": bool(hvd.mpi_built()),
        "gloo": bool(hvd.gloo_built()),
        "nccl": bool(hvd.nccl_built()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
