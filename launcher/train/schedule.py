"""The learning rate as a function of where the run stands; computed anew each step.

World size and global batch are arguments, not memory: an elastic job that loses a rank goes on at
the rate its new size calls for.
"""

import math

from launcher.train.config import TrainConfig


def learning_rate(config: TrainConfig, progress: float, world_size: int) -> float:
    """The rate after `progress` epochs.

    Rises linearly from the base rate to base times world size during warm-up (Goyal et al., 2017,
    https://arxiv.org/abs/1706.02677), then falls as the schedule says.

    Args:
        config: Gives the base rate, the warm-up, the schedule and the number of epochs.
        progress: Epochs done, with fraction.
        world_size: Number of ranks.
    """
    base, peak = config.learning_rate, config.learning_rate * world_size
    warmup = min(config.warmup_epochs, config.epochs / 2)
    if progress < warmup:
        return base + (peak - base) * progress / warmup
    done = min(1.0, (progress - warmup) / (config.epochs - warmup))
    if config.schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * done))
    if config.schedule == "step":
        # Tenfold down at one half and at three quarters, as in the ResNet paper.
        return peak * 0.1 ** (int(done >= 0.5) + int(done >= 0.75))
    return peak
