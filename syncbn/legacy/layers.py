"""`tf.layers.batch_normalization`, as of TensorFlow 1.15."""

from typing import Any

import tensorflow as tf

from syncbn.layer import Adjustment, SyncBatchNormalization
from syncbn.legacy.store import current_store
from syncbn.legacy.switch import call, dtype_policy, floating_inputs

_ZEROS, _ONES = tf.compat.v1.zeros_initializer(), tf.compat.v1.ones_initializer()


@tf.autograph.experimental.do_not_convert
def batch_normalization(
    inputs: Any,
    axis: int | list[int] = -1,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    center: bool = True,
    scale: bool = True,
    beta_initializer: Any = _ZEROS,
    gamma_initializer: Any = _ONES,
    moving_mean_initializer: Any = _ZEROS,
    moving_variance_initializer: Any = _ONES,
    beta_regularizer: Any = None,
    gamma_regularizer: Any = None,
    beta_constraint: Any = None,
    gamma_constraint: Any = None,
    training: Any = False,
    trainable: bool = True,
    name: Any = None,
    reuse: Any = None,
    renorm: bool = False,
    renorm_clipping: dict[str, float] | None = None,
    renorm_momentum: float = 0.99,
    fused: bool | None = None,
    virtual_batch_size: int | None = None,
    adjustment: Adjustment | None = None,
) -> Any:
    """Batch normalization with the parameters, order and defaults of `tf.layers`.

    Calls a `syncbn.SyncBatchNormalization`, so statistics are those of all ranks. Works eagerly, in
    a `tf.function`, and on symbolic Keras inputs. The moving statistics are updated inside the
    call: control dependencies on UPDATE_OPS are not needed.

    Args:
        inputs: Floating point, rank ≥ 2.
        axis: The channel axis, or a list of that one axis.
        momentum: Momentum of the moving statistics.
        epsilon: Added to the variance.
        center: Whether to add beta.
        scale: Whether to multiply by gamma.
        beta_initializer: From Keras, from tf.compat.v1, or any callable of shape and dtype, like
            the other initializers.
        gamma_initializer: See above.
        moving_mean_initializer: See above.
        moving_variance_initializer: See above.
        beta_regularizer: Callable; the sum of all regularizers is in `store.losses`.
        gamma_regularizer: See above.
        beta_constraint: Callable from the updated variable to the projected one.
        gamma_constraint: See above.
        training: A bool, 0 or 1, or a boolean scalar tensor, the same on every rank.
        trainable: False excludes beta and gamma from training; statistics are still updated.
        name: Name below the current variable scope, or a VariableScope; default
            "batch_normalization", "batch_normalization_1", ...
        reuse: True: the name must exist. Otherwise it is found or created; see `LayerStore` for
            checks of names.
        renorm: Batch renormalization.
        renorm_clipping: Optional keys rmax, rmin, dmax.
        renorm_momentum: Momentum of the renorm statistics.
        fused: True updates the moving variance with the n/(n−1) estimate, as the fused kernel did
            for inputs of rank 4; None and False: the population variance. Speed is the same.
        virtual_batch_size: Ghost batches of this many samples.
        adjustment: Callable from the shape of the inputs to (scale, bias), in training only.

    Returns:
        A tensor of the shape and dtype of `inputs`.

    Raises:
        ValueError: An invalid argument or name, or a TensorFlow 1 graph.
    """
    channel_axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
    if isinstance(channel_axis, bool) or not isinstance(channel_axis, int):
        raise ValueError(
            "axis must be one integer: for statistics with several channel axes use "
            f"syncbn.legacy.moments. Received: axis={axis!r}"
        )
    store = current_store()
    inputs = floating_inputs(inputs)
    plain = {
        "axis": channel_axis,
        "momentum": momentum,
        "epsilon": epsilon,
        "center": center,
        "scale": scale,
        "trainable": trainable,
        "renorm": renorm,
        "renorm_clipping": renorm_clipping,
        "renorm_momentum": renorm_momentum,
        "fused": fused,
        "virtual_batch_size": virtual_batch_size,
    }

    def make(scope: str) -> SyncBatchNormalization:
        fusible = len(inputs.shape) == 4 and not renorm and virtual_batch_size is None
        return SyncBatchNormalization(
            axis=channel_axis,
            momentum=momentum,
            epsilon=epsilon,
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            moving_mean_initializer=moving_mean_initializer,
            moving_variance_initializer=moving_variance_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            renorm=renorm,
            renorm_clipping=renorm_clipping,
            renorm_momentum=renorm_momentum,
            virtual_batch_size=virtual_batch_size,
            adjustment=adjustment,
            bessel_correction=bool(fused and fusible and not adjustment),
            dtype=dtype_policy(inputs),
            name=scope.replace("/", "."),
        )

    layer = store.obtain(name, "batch_normalization", reuse, plain, make)
    layer.adjustment = adjustment
    return call(layer, inputs, training, "training", trainable)
