"""Models by name: our own networks, any of keras.applications, or the user's function."""

import keras

from launcher.train.config import TrainConfig
from launcher.train.data import DataSet
from launcher.train.models.external import application, user_model
from launcher.train.models.networks import BODIES, normalization


def build_model(config: TrainConfig, data: DataSet) -> keras.Model:
    """A model from `data.shape` to logits of `data.classes`, which are float32 always.

    Raises:
        UsageError: The name is none we know, or the user's function does not fit.
    """
    if ":" in config.model:
        return user_model(config, data)
    if config.model not in BODIES:
        return application(config, data)
    inputs = keras.Input(data.shape, name="image")
    features = BODIES[config.model](inputs, normalization(config))
    logits = keras.layers.Dense(data.classes, dtype="float32", name="logits")(features)
    return keras.Model(inputs, logits, name=config.model)
