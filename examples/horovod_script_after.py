"""`horovod_script_before.py`, migrated to syncbn: four lines differ.

horovodrun -np 2 python examples/horovod_script_after.py
"""

import keras
from sklearn.datasets import load_digits

import syncbn as hvd

hvd.init()
rank, size = hvd.communicator().rank, hvd.communicator().size

images, labels = load_digits(return_X_y=True)
images, labels = images[rank::size] / 16.0, labels[rank::size]

model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Dense(64, use_bias=False),
        hvd.SyncBatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
        keras.layers.Dense(10),
    ]
)
optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.001 * size))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer, loss=loss, metrics=["accuracy"])
watch = [hvd.callbacks.BroadcastVariables(), hvd.callbacks.AverageMetrics()]
history = model.fit(images, labels, batch_size=32, epochs=10, callbacks=watch, verbose=0)

if rank == 0:
    print(f"accuracy {history.history['accuracy'][-1]:.4f}")
