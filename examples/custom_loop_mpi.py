"""A custom training loop over MPI: the gradient tape, one step as a graph, uneven shards.

mpirun -np 2 python examples/custom_loop_mpi.py
"""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import syncbn

EPOCHS, BATCH = 5, 16

ranks = syncbn.init("mpi")

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
mine = slice(ranks.rank, None, ranks.size)
data = tf.data.Dataset.from_tensor_slices((images[mine], labels[mine].astype("int32")))
data = data.shuffle(2000, seed=ranks.rank).batch(BATCH)
# All ranks take the same number of steps; one whose data are exhausted uses an empty batch.
steps = int(np.ceil(np.ceil(len(images) / ranks.size) / BATCH))

model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(64, use_bias=False),
        syncbn.SyncBatchNormalization(momentum=0.9, activation="relu"),
        keras.layers.Dense(10),
    ]
)
optimizer = keras.optimizers.Adam(0.002 * ranks.size)
optimizer.build(model.trainable_variables)
loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
syncbn.broadcast_variables([model, optimizer])


@tf.function
def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    with syncbn.DistributedGradientTape() as tape:
        loss = loss_of(y, model(x, training=True))
    # The loss is a sum over this rank's rows; the gradient becomes the mean over all rows.
    gradients = tape.gradient(loss, model.trainable_variables, rows=tf.shape(x)[0])
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return ranks.all_reduce(tf.stack([loss, tf.cast(tf.shape(x)[0], tf.float32)]), "loss")


empty = (tf.zeros((0, 64)), tf.zeros((0,), tf.int32))
for epoch in range(EPOCHS):
    batches = iter(data)
    totals = sum(step(*next(batches, empty)) for _ in range(steps)).numpy()
    if ranks.rank == 0:
        print(f"epoch {epoch}: loss {totals[0] / totals[1]:.4f} over {totals[1]:.0f} images")

accuracy = np.mean(np.argmax(model.predict(images, verbose=0), axis=1) == labels)
if ranks.rank == 0:
    print(f"accuracy {accuracy:.4f} on {ranks.size} ranks")
