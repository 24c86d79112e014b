"""A Keras program without syncbn, as a user would start it under mpirun: up to its first step.

It has the default network of `launcher.train` with Keras' normalization, and prints the time at
which the first step has ended, in seconds since the epoch.
"""

import os
import time

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np
import tensorflow as tf


def main() -> None:
    random = np.random.default_rng(0)
    images = random.normal(size=(32, 8, 8, 1)).astype(np.float32)
    labels = random.integers(10, size=32)
    inputs = outputs = keras.Input((8, 8, 1))
    for filters, stride in ((32, 1), (64, 2), (64, 1)):
        outputs = keras.layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(outputs)
        outputs = keras.layers.ReLU()(keras.layers.BatchNormalization()(outputs))
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(outputs)))
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    step(images, labels).numpy()
    print(f"first step at {time.time()}", flush=True)


if __name__ == "__main__":
    main()
