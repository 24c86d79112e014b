"""Segmentation with two images per rank: local statistics would cover only two images.

mpirun -np 2 python examples/segmentation.py
mpirun -np 2 python examples/segmentation.py --steps 20
"""

import argparse
from collections.abc import Iterator

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import syncbn

Pair = tuple[np.ndarray, np.ndarray]  # images, and the class of each pixel
BATCH, SIDE, CLASSES = 2, 32, 11  # ten digits and the background

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=300)
options = parser.parse_args()

ranks = syncbn.init()
keras.utils.set_random_seed(1)
digits, names = load_digits(return_X_y=True)
digits = digits.reshape(-1, 8, 8) / 16


def scene(random: np.random.Generator) -> Pair:
    """Four handwritten digits on a dark, noisy background, and the class of each pixel."""
    image = random.uniform(0, 0.3, (SIDE, SIDE))
    target = np.zeros((SIDE, SIDE), np.int32)
    for corner in range(4):
        chosen = random.integers(len(digits))
        row, column = random.integers(0, 9, 2) + (SIDE // 2) * np.array(divmod(corner, 2))
        window = np.s_[row : row + 8, column : column + 8]
        image[window] += digits[chosen]
        target[window][digits[chosen] > 0.3] = names[chosen] + 1
    return image[..., None].astype("float32"), target


def scenes(seed: list[int]) -> Iterator[Pair]:
    random = np.random.default_rng(seed)
    while True:
        images, targets = zip(*(scene(random) for _ in range(BATCH)), strict=True)
        yield np.stack(images), np.stack(targets)


def convolution(x: keras.KerasTensor, channels: int, strides: int = 1) -> keras.KerasTensor:
    x = layers.Conv2D(channels, 3, strides, padding="same", use_bias=False)(x)
    return syncbn.SyncBatchNormalization(momentum=0.9, activation="relu")(x)


inputs = keras.Input((SIDE, SIDE, 1))
fine = convolution(inputs, 16)
middle = convolution(fine, 32, strides=2)
coarse = convolution(convolution(middle, 64, strides=2), 64)
middle = convolution(layers.Concatenate()([layers.UpSampling2D()(coarse), middle]), 32)
fine = convolution(layers.Concatenate()([layers.UpSampling2D()(middle), fine]), 16)
model = keras.Model(inputs, layers.Conv2D(CLASSES, 1)(fine))

model.compile(
    syncbn.DistributedOptimizer(keras.optimizers.Adam(0.002 * ranks.size)),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=[keras.metrics.MeanIoU(CLASSES, sparse_y_pred=False, name="overlap")],
)
history = model.fit(
    scenes(seed=[7, ranks.rank]),  # different images on each rank
    steps_per_epoch=options.steps,
    callbacks=[syncbn.callbacks.BroadcastVariables(), syncbn.callbacks.AverageMetrics()],
    verbose=0,
)
if ranks.rank == 0:
    last = {name: values[-1] for name, values in history.history.items()}
    print(f"loss {last['loss']:.4f}, mean overlap {last['overlap']:.3f} over {ranks.size} ranks")
