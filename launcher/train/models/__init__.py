"""Models by name: built-in networks, keras.applications, or the user's function."""

import keras

from launcher.train.models.external import application, user_model
from launcher.train.models.networks import BODIES, normalization


def build_model(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    norm: str = "sync",
    bn_momentum: float = 0.9,
) -> keras.Model:
    """Builds a model from images to float32 logits.

    Args:
        name: A built-in network, a name of keras.applications, or `package.module:function`.
        shape: Shape of one image, (height, width, channels).
        classes: Number of classes.
        norm: Batch normalization: `sync`, `local` or `none`.
        bn_momentum: Momentum of the moving statistics of a built-in network.

    Raises:
        UsageError: The name is unknown, or the user's function does not fit.
    """
    if ":" in name:
        return user_model(name, shape, classes, norm)
    if name not in BODIES:
        return application(name, shape, classes, norm)
    inputs = keras.Input(shape, name="image")
    features = BODIES[name](inputs, normalization(norm, bn_momentum))
    logits = keras.layers.Dense(classes, dtype="float32", name="logits")(features)
    return keras.Model(inputs, logits, name=name)
