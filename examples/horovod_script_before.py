"""A Horovod script as in Horovod's documentation. On Keras 3 it fails.

`horovod_script_after.py` is the same script, migrated to syncbn.

    horovodrun -np 2 python examples/horovod_script_before.py
"""

import horovod.tensorflow.keras as hvd
import keras
from sklearn.datasets import load_digits

hvd.init()
rank, size = hvd.rank(), hvd.size()

images, labels = load_digits(return_X_y=True)
images, labels = images[rank::size] / 16.0, labels[rank::size]

model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(64, use_bias=False),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
        keras.layers.Dense(10),
    ]
)
optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.001 * size))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer, loss=loss, metrics=["accuracy"])
watch = [hvd.callbacks.BroadcastGlobalVariablesCallback(0), hvd.callbacks.MetricAverageCallback()]
history = model.fit(images, labels, batch_size=32, epochs=10, callbacks=watch, verbose=0)

if rank == 0:
    print(f"accuracy {history.history['accuracy'][-1]:.4f}")
