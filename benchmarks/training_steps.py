"""The steps of `benchmarks.training`: whole models, gradients averaged over ranks."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import syncbn
from benchmarks.harness import rank

Norm = Callable[[], keras.layers.Layer]


def resnet20(norm: Norm, pixels: int, blocks: int = 3) -> keras.Model:
    """ResNet-20 for 32x32 images (He et al., 2016, section 4.2): three stages of three blocks."""

    def convolution(x: Any, filters: int, stride: int = 1, kernel: int = 3) -> Any:
        return norm()(
            keras.layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False)(x)
        )

    inputs = keras.Input((pixels, pixels, 3))
    x = keras.layers.ReLU()(convolution(inputs, 16))
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            y = keras.layers.ReLU()(convolution(x, filters, stride))
            y = convolution(y, filters)
            if stride > 1:
                x = convolution(x, filters, stride, kernel=1)
            x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    features = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(features))


def application(contender: str, name: str, pixels: int) -> keras.Model:
    """A network of keras.applications with the normalization of a contender."""
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=(pixels, pixels, 3), classes=10)
    if contender == "ours":
        return syncbn.convert_sync_batchnorm(model)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = contender == "keras synchronized"
    return model


NORMS: dict[str, Norm] = {
    "ours": syncbn.SyncBatchNormalization,
    "keras": keras.layers.BatchNormalization,
    "keras synchronized": lambda: keras.layers.BatchNormalization(synchronized=True),
}


class Service(rank.TimingService):
    """Contenders: those of NORMS, each with the gradient averaging of its backend."""

    def make(self, contender: str, case: dict[str, Any]) -> rank.Step:
        batch, pixels = case["batch"], case["pixels"]
        strategy = getattr(self.communicator, "strategy", tf.distribute.get_strategy())
        replicas = strategy.num_replicas_in_sync
        keras.utils.set_random_seed(1)
        with strategy.scope():
            if "application" in case:
                model = application(contender, case["application"], pixels)
            else:
                model = resnet20(NORMS[contender], pixels, case["blocks"])
            optimizer: Any = keras.optimizers.SGD(0.01, momentum=0.9)
            if replicas == 1:
                optimizer = syncbn.DistributedOptimizer(optimizer)
            optimizer.build(model.trainable_variables)
        random = np.random.default_rng(self.communicator.rank)
        images = tf.constant(random.normal(size=(batch, pixels, pixels, 3)), tf.float32)
        labels = tf.constant(random.integers(10, size=batch))

        def train(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                logits = model(images, training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
                # Under a strategy Keras sums the gradients of the replicas.
                loss = tf.reduce_mean(losses) / replicas
            variables = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        if replicas > 1:
            graph = tf.function(lambda *batch: strategy.run(train, args=batch))
        else:
            graph = tf.function(train)
        return lambda: graph(images, labels)
