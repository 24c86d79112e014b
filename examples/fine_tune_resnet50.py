"""Fine-tunes a ResNet50 of keras.applications with synchronized statistics on few images.

horovodrun -np 2 python examples/fine_tune_resnet50.py
horovodrun -np 2 python examples/fine_tune_resnet50.py --weights none --size 32 --steps 2
"""

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits

import syncbn

parser = argparse.ArgumentParser()
parser.add_argument("--weights", choices=["imagenet", "none"], default="imagenet")
parser.add_argument("--size", type=int, default=96, help="side of the images in pixels")
parser.add_argument("--steps", type=int, default=50)
options = parser.parse_args()

ranks = syncbn.init()
keras.utils.set_random_seed(1)

weights = None if options.weights == "none" else options.weights
backbone = keras.applications.ResNet50(
    include_top=False, weights=weights, input_shape=(options.size, options.size, 3), pooling="avg"
)
# Conversion preserves the weights; momentum 0.9, since fine-tuning is short.
backbone = syncbn.convert_sync_batchnorm(backbone, momentum=0.9)
for layer in backbone.layers:  # only the last stage is trained: frozen layers do not communicate
    layer.trainable = layer.name.startswith("conv5")

images, labels = load_digits(return_X_y=True)
images = np.repeat(images.reshape(-1, 8, 8, 1) * (255 / 16), 3, axis=-1)[ranks.rank :: ranks.size]
labels = labels[ranks.rank :: ranks.size]

model = keras.Sequential(
    [
        keras.Input((8, 8, 3)),
        keras.layers.Resizing(options.size, options.size),
        keras.layers.Lambda(keras.applications.resnet50.preprocess_input),
        backbone,
        keras.layers.Dense(10),
    ]
)
model.compile(
    syncbn.DistributedOptimizer(keras.optimizers.SGD(0.01, momentum=0.9, clipnorm=1.0)),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
history = model.fit(
    images,
    labels,
    batch_size=4,
    steps_per_epoch=options.steps,
    callbacks=[syncbn.callbacks.BroadcastVariables(), syncbn.callbacks.AverageMetrics()],
    verbose=0,
)
if ranks.rank == 0:
    norms = [x for x in backbone.layers if isinstance(x, syncbn.SyncBatchNormalization)]
    print(f"{len(norms)} synchronized layers, {sum(x.trainable for x in norms)} of them trained")
    print(f"loss {history.history['loss'][-1]:.4f} after {options.steps} steps")
