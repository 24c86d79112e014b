"""`tf.contrib.layers.batch_norm` (also slim.batch_norm), as of TensorFlow 1.15."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from syncbn.layer import Adjustment, SyncBatchNormalization
from syncbn.legacy.store import current_store, explain_once
from syncbn.legacy.switch import call, dtype_policy, floating_inputs

_UPDATE_OPS = tf.compat.v1.GraphKeys.UPDATE_OPS
_WEIGHTS = ("beta", "gamma", "moving_mean", "moving_variance")


@tf.autograph.experimental.do_not_convert
def batch_norm(
    inputs: Any,
    decay: float = 0.999,
    center: bool = True,
    scale: bool = False,
    epsilon: float = 0.001,
    activation_fn: Callable[[Any], Any] | None = None,
    param_initializers: dict[str, Any] | None = None,
    param_regularizers: dict[str, Any] | None = None,
    updates_collections: Any = _UPDATE_OPS,
    is_training: Any = True,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    batch_weights: Any = None,
    fused: bool | None = None,
    data_format: str = "NHWC",
    zero_debias_moving_mean: bool = False,
    scope: Any = None,
    renorm: bool = False,
    renorm_clipping: dict[str, float] | None = None,
    renorm_decay: float = 0.99,
    adjustment: Adjustment | None = None,
) -> Any:
    """Batch normalization with the parameters, order and defaults of `tf.contrib.layers`.

    Calls a `syncbn.SyncBatchNormalization`, so statistics are those of all ranks. Works eagerly, in
    a `tf.function`, and on symbolic Keras inputs.

    Args:
        inputs: Floating point, rank ≥ 2; channels last, or second for NCHW.
        decay: Momentum of the moving statistics.
        center: Whether to add beta.
        scale: Whether to multiply by gamma.
        epsilon: Added to the variance.
        activation_fn: Applied to the outputs; AutoGraph does not convert it, as in Keras layers.
        param_initializers: Initializers for beta, gamma, moving_mean, moving_variance.
        param_regularizers: Regularizers for beta, gamma; their sum is in `store.losses`.
        updates_collections: Ignored: the moving statistics are updated inside the call, as with
            None in TensorFlow 1. No control dependencies on UPDATE_OPS are needed.
        is_training: A bool, 0 or 1, or a boolean scalar tensor, the same on every rank.
        reuse: True: the scope must exist. Otherwise it is found or created; see `LayerStore` for
            checks of scopes.
        variables_collections: Ignored; see `store.variables`.
        outputs_collections: Ignored; keep the returned tensor.
        trainable: False excludes beta and gamma from training; statistics are still updated.
        batch_weights: Frequency weight of each sample, shape (batch,).
        fused: True updates the moving variance with the n/(n−1) estimate, as the fused kernel did
            for inputs of rank 4 (or 2); None and False: the population variance. Speed is the same.
        data_format: "NHWC" (channels last, any rank) or "NCHW" (channels second).
        zero_debias_moving_mean: Remove the bias of the initial zero of the moving mean.
        scope: Name below the current variable scope, or a VariableScope; default "BatchNorm",
            "BatchNorm_1", ...
        renorm: Batch renormalization.
        renorm_clipping: Optional keys rmax, rmin, dmax.
        renorm_decay: Momentum of the renorm statistics.
        adjustment: Callable from the shape of the inputs to (scale, bias), in training only.

    Returns:
        A tensor of the shape and dtype of `inputs`.

    Raises:
        ValueError: An invalid argument or scope, or a TensorFlow 1 graph.
    """
    if data_format not in ("NHWC", "NCHW"):
        raise ValueError(
            f"data_format must be 'NHWC' or 'NCHW'. Received: data_format={data_format!r}"
        )
    initializers = _by_name("param_initializers", param_initializers, _WEIGHTS)
    regularizers = _by_name("param_regularizers", param_regularizers, _WEIGHTS[:2])
    _explain(updates_collections, variables_collections, outputs_collections)
    store = current_store()
    inputs = floating_inputs(inputs)
    plain = {
        "data_format": data_format,
        "decay": decay,
        "center": center,
        "scale": scale,
        "epsilon": epsilon,
        "trainable": trainable,
        "fused": fused,
        "zero_debias_moving_mean": zero_debias_moving_mean,
        "renorm": renorm,
        "renorm_clipping": renorm_clipping,
        "renorm_decay": renorm_decay,
    }

    def make(name: str) -> SyncBatchNormalization:
        fusible = len(inputs.shape) in (2, 4) and not renorm
        return SyncBatchNormalization(
            axis=1 if data_format == "NCHW" else -1,
            momentum=decay,
            epsilon=epsilon,
            center=center,
            scale=scale,
            **{f"{key}_initializer": value for key, value in initializers.items()},
            **{f"{key}_regularizer": value for key, value in regularizers.items()},
            renorm=renorm,
            renorm_clipping=renorm_clipping,
            renorm_momentum=renorm_decay,
            adjustment=adjustment,
            zero_debias_moving_mean=zero_debias_moving_mean,
            bessel_correction=bool(fused and fusible and batch_weights is None and not adjustment),
            dtype=dtype_policy(inputs),
            name=name.replace("/", "."),
        )

    layer = store.obtain(scope, "BatchNorm", reuse, plain, make)
    layer.adjustment = adjustment
    outputs = call(layer, inputs, is_training, "is_training", trainable, batch_weights)
    return outputs if activation_fn is None else activation_fn(outputs)


def _by_name(argument: str, given: Any, known: tuple[str, ...]) -> dict[str, Any]:
    given = {} if given is None else given
    if not isinstance(given, dict) or set(given) - set(known):
        raise ValueError(
            f"{argument} must be a dictionary with keys among {', '.join(known)}. "
            f"Received: {argument}={given!r}"
        )
    return {key: value for key, value in given.items() if value is not None}


def _explain(updates: Any, variables: Any, outputs: Any) -> None:
    if updates is not None:
        explain_once(
            "updates_collections",
            "updates_collections: moving statistics are updated inside the call; control "
            "dependencies on UPDATE_OPS are no longer needed",
        )
    if variables is not None:
        explain_once(
            "variables_collections",
            "variables_collections: collections no longer exist; the variables are in "
            "syncbn.legacy.default_store(), or in the LayerStore around the call",
        )
    if outputs is not None:
        explain_once(
            "outputs_collections",
            "outputs_collections: collections no longer exist; keep the returned tensor",
        )
