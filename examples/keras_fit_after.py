"""`keras_fit_before.py` for any number of processes: five lines differ.

horovodrun -np 2 python examples/keras_fit_after.py
mpirun -np 2 python examples/keras_fit_after.py
"""

import keras
from sklearn.datasets import load_digits

import syncbn

rank, size = syncbn.init().rank, syncbn.communicator().size
x, y = load_digits(return_X_y=True)

model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Rescaling(1 / 16),
        keras.layers.Dense(64, use_bias=False),
        syncbn.SyncBatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
        keras.layers.Dense(10),
    ]
)
optimizer = syncbn.DistributedOptimizer(keras.optimizers.Adam(0.002))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer, loss=loss, metrics=["accuracy"])
model.fit(x[rank::size], y[rank::size], epochs=8, callbacks=[syncbn.callbacks.BroadcastVariables()])
print(f"accuracy {model.evaluate(x, y, verbose=0)[1]:.4f}")
