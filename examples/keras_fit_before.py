"""A Keras script for one process. `keras_fit_after.py` is the same script for any number.

python examples/keras_fit_before.py
"""

import keras
from sklearn.datasets import load_digits

x, y = load_digits(return_X_y=True)

model = keras.Sequential(
    [
        keras.Input((64,)),
        keras.layers.Rescaling(1 / 16),
        keras.layers.Dense(64, use_bias=False),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
        keras.layers.Dense(10),
    ]
)
optimizer = keras.optimizers.Adam(0.002)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer, loss=loss, metrics=["accuracy"])
model.fit(x, y, epochs=8)
print(f"accuracy {model.evaluate(x, y, verbose=0)[1]:.4f}")
