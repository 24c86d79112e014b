"""The optimizer of a run: precision and decay around a Keras optimizer that averages over ranks."""

from typing import Any

import keras

from launcher.train.config import TrainConfig
from syncbn.communicators import Communicator
from syncbn.training import DistributedOptimizer


def make_optimizer(config: TrainConfig, communicator: Communicator | None = None) -> Any:
    """Adam or SGD with momentum. Its learning rate is set before each step (see `schedule`)."""
    decay = config.weight_decay or None
    plain: Any
    if config.optimizer == "sgd":
        plain = keras.optimizers.SGD(
            config.learning_rate, momentum=0.9, nesterov=True, weight_decay=decay
        )
    else:
        plain = keras.optimizers.Adam(config.learning_rate, weight_decay=decay)
    if decay:
        # Biases and the scales of normalization layers are not decayed: Goyal et al., 2017.
        plain.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    if config.precision == "mixed_float16":
        # Inside: overflow is judged on the averaged gradients, so all ranks skip the same steps.
        plain = keras.optimizers.LossScaleOptimizer(plain)
    compression = None if config.compression == "none" else config.compression
    return DistributedOptimizer(plain, communicator, compression=compression)
