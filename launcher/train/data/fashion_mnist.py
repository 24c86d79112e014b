"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017, https://arxiv.org/abs/1708.07747).

70,000 images of 28×28 pixels of ten kinds of clothing, in the files of MNIST.
"""

import os
from dataclasses import replace
from pathlib import Path

from launcher.errors import UsageError
from launcher.train.data import mnist
from launcher.train.data.dataset import DataSet

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def load(path: Path | None) -> DataSet:
    """Reads `path`, or the first of Debian's package and Keras' cache.

    Raises:
        UsageError: There is no path, and none of the two has the files; says how to get them.
        DataError: A file is missing or damaged.
    """
    return replace(mnist.load(path or _installed()), name="fashion-mnist")


def _installed() -> Path:
    keras_home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    places = [DEBIAN, Path(keras_home, "datasets", "fashion-mnist")]
    for place in places:
        if place.is_dir():
            return place
    raise UsageError(
        "--dataset fashion-mnist is not installed: apt-get install dataset-fashion-mnist, or "
        'python -c "import keras; keras.datasets.fashion_mnist.load_data()", or --data DIRECTORY '
        f"of its four IDX files. Looked in: {', '.join(map(str, places))}"
    )
