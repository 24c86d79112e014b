"""Speed and accuracy of predictions after folding batch normalizations.

python -m benchmarks.fold [--batch 8] [--size 96] [--json FILE]

Both models run in a tf.function, alternately, so that other load affects both. "error" is the
difference of the folded model from the original, "of rounding" that of the original from float64.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

import syncbn

MODELS: dict[str, Callable[..., keras.Model]] = {
    "ResNet50": keras.applications.ResNet50,
    "MobileNetV2": keras.applications.MobileNetV2,
    "EfficientNetB0": keras.applications.EfficientNetB0,
}
_TURNS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="images per prediction")
    parser.add_argument("--size", type=int, default=96, help="width and height in pixels")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    rows = [measure(name, options.batch, options.size) for name in MODELS]
    table = Table(title=f"Predicting {options.batch} images of {options.size}x{options.size}")
    for column in ("model", "layers", "ms", "folded ms", "faster", "error", "of rounding"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['layers']} → {row['layers_folded']}",
            f"{row['original_ms']:.1f}",
            f"{row['folded_ms']:.1f}",
            f"{row['original_ms'] / row['folded_ms']:.2f}×",
            f"{row['relative_error']:.1e}",
            f"{row['rounding']:.1e}",
        )
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(name: str, batch: int, size: int) -> dict[str, Any]:
    keras.utils.set_random_seed(0)
    model = MODELS[name](weights=None, input_shape=(size, size, 3), classifier_activation=None)
    images = np.random.default_rng(0).normal(size=(batch, size, size, 3)).astype("float32")
    syncbn.recompute_statistics(model, [images])  # like trained ones: not 0 and 1
    folded = syncbn.fold_batchnorm(model)
    predict = {key: _compiled(m) for key, m in (("original", model), ("folded", folded))}
    outputs = {key: run(images).numpy() for key, run in predict.items()}
    seconds: dict[str, list[float]] = {key: [] for key in predict}
    for _ in range(_TURNS):
        for key, run in predict.items():
            begun = time.perf_counter()
            run(images)
            seconds[key].append(time.perf_counter() - begun)
    return {
        "model": name,
        "layers": len(model.layers),
        "layers_folded": len(folded.layers),
        "original_ms": 1e3 * statistics.median(seconds["original"]),
        "folded_ms": 1e3 * statistics.median(seconds["folded"]),
        "relative_error": _relative(outputs["folded"], outputs["original"]),
        "rounding": _relative(outputs["original"], _in_float64(model, name, images)),
    }


def _in_float64(model: keras.Model, name: str, images: np.ndarray) -> np.ndarray:
    """The predictions of the original in float64, the reference for errors."""
    keras.config.set_dtype_policy("float64")
    exact = MODELS[name](weights=None, input_shape=images.shape[1:], classifier_activation=None)
    keras.config.set_dtype_policy("float32")
    exact.set_weights(model.get_weights())
    return exact(images, training=False).numpy()


def _relative(values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def _compiled(model: keras.Model) -> Callable[[np.ndarray], tf.Tensor]:
    return tf.function(lambda images: model(images, training=False), reduce_retracing=True)


if __name__ == "__main__":
    main()
