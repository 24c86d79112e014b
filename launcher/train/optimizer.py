"""The optimizer of a run and its learning rate schedule."""

import math
from typing import Any

import keras

import syncbn


def make_optimizer(
    name: str,
    learning_rate: float,
    weight_decay: float = 0.0,
    loss_scaling: bool = False,
    compression: str = "none",
    communicator: syncbn.Communicator | None = None,
) -> Any:
    """Adam, or SGD with momentum, with gradients averaged over the ranks.

    The training loop sets the learning rate before each step.

    Args:
        name: `adam` or `sgd`.
        learning_rate: Initial learning rate.
        weight_decay: Decoupled weight decay; biases and normalization scales are exempt.
        loss_scaling: Whether to scale the loss, for float16.
        compression: Dtype to send gradients in: `none`, `float16` or `bfloat16`.
        communicator: None for `syncbn.communicator()`.
    """
    decay = weight_decay or None
    optimizer: Any
    if name == "sgd":
        optimizer = keras.optimizers.SGD(
            learning_rate, momentum=0.9, nesterov=True, weight_decay=decay
        )
    else:
        optimizer = keras.optimizers.Adam(learning_rate, weight_decay=decay)
    if decay:
        # As in Goyal et al., 2017, https://arxiv.org/abs/1706.02677.
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    if loss_scaling:
        # Inside: overflow is detected in the averaged gradients, so all ranks skip the same steps.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return syncbn.DistributedOptimizer(
        optimizer, communicator, compression=None if compression == "none" else compression
    )


def learning_rate(
    progress: float, world_size: int, *, base: float, schedule: str, warmup: float, epochs: int
) -> float:
    """The learning rate after `progress` epochs.

    Rises linearly from `base` to `base` times `world_size` during warm-up (Goyal et al., 2017,
    https://arxiv.org/abs/1706.02677), then follows the schedule. It is recomputed at each step:
    an elastic job that loses a rank continues at the rate for its new size.

    Args:
        progress: Epochs done, with fraction.
        world_size: Number of ranks.
        base: Learning rate of a single rank.
        schedule: `constant`, `cosine`, or `step`.
        warmup: Epochs of warm-up; at most half of the run.
        epochs: Epochs of the whole run.
    """
    peak = base * world_size
    warmup = min(warmup, epochs / 2)
    if progress < warmup:
        return base + (peak - base) * progress / warmup
    done = min(1.0, (progress - warmup) / (epochs - warmup))
    if schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule == "step":
        # Divided by ten at one half and at three quarters, as in the ResNet paper.
        return peak * 0.1 ** (int(done >= 0.5) + int(done >= 0.75))
    return peak
