"""MultiWorkerMirroredStrategy with `strategy.run` and statistics over all replicas.

python -m launcher run -np 2 --backend tf -- python examples/multi_worker_mirrored.py
"""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import syncbn

EPOCHS, GLOBAL_BATCH = 5, 32

strategy = tf.distribute.MultiWorkerMirroredStrategy()  # first: it starts the cluster of TF_CONFIG
replicas = strategy.num_replicas_in_sync

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
data = tf.data.Dataset.from_tensor_slices((images, labels.astype("int32")))
data = data.shuffle(2000, seed=1).batch(GLOBAL_BATCH, drop_remainder=True)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
batches = strategy.experimental_distribute_dataset(data.with_options(options))

with strategy.scope():
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, use_bias=False),
            syncbn.SyncBatchNormalization(momentum=0.9, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    optimizer = keras.optimizers.Adam(0.003)
    optimizer.build(model.trainable_variables)
loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")


@tf.function
def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    def on_replica(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True)) / GLOBAL_BATCH
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return strategy.reduce("SUM", strategy.run(on_replica, args=(x, y)), axis=None)


for epoch in range(EPOCHS):
    losses = [float(step(x, y)) for x, y in batches]
    print(f"epoch {epoch}: loss {np.mean(losses):.4f}")

scores = model(images, training=False)
accuracy = np.mean(np.argmax(scores, axis=1) == labels)
print(f"accuracy {accuracy:.4f} on {replicas} replicas")
