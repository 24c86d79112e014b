"""Keras `fit` over Horovod: initial broadcast, warm-up, metrics over all ranks, a divergence alarm.

horovodrun -np 2 python examples/keras_fit_horovod.py
"""

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import syncbn

EPOCHS = 4

ranks = syncbn.init("horovod")
keras.utils.set_random_seed(1)

images, labels = load_digits(return_X_y=True)
images = (images / 16).reshape(-1, 8, 8, 1).astype("float32")
x, test_x, y, test_y = train_test_split(images, labels, test_size=0.2, random_state=0)

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(32, 3, padding="same", use_bias=False),
        syncbn.SyncBatchNormalization(momentum=0.9, activation="relu"),
        keras.layers.Conv2D(64, 3, strides=2, use_bias=False),
        syncbn.SyncBatchNormalization(momentum=0.9, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(10),
    ]
)
model.compile(
    syncbn.DistributedOptimizer(keras.optimizers.Adam(0.003)),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
syncbn.weigh_rows(model)  # 1437 is odd: the last batches of the ranks differ in size
history = model.fit(
    x[ranks.rank :: ranks.size],
    y[ranks.rank :: ranks.size],
    batch_size=32,
    epochs=EPOCHS,
    validation_data=(test_x[ranks.rank :: ranks.size], test_y[ranks.rank :: ranks.size]),
    callbacks=[
        syncbn.callbacks.BroadcastVariables(),
        syncbn.callbacks.WarmUpLearningRate(epochs=1),
        syncbn.callbacks.AverageMetrics(),
        syncbn.callbacks.DivergenceAlarm(every=50),
    ],
    verbose=0,
)
if ranks.rank == 0:
    print(f"accuracy {history.history['val_accuracy'][-1]:.4f} on {ranks.size} ranks")
