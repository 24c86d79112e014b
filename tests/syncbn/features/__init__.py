"""Checks of the layer's features on any world, in float64 against the oracle.

Each check runs on every rank of a world and returns, for each rank held here, its errors compared
with the oracle of the global batch (relative to the norm of the global result) and the bits that
must be equal on all ranks. `CHECKS` lists them; the tests and the rank programs run them all.
"""

import numpy as np

from tests.syncbn.features import (
    axes,
    composition,
    ghost_batches,
    groups,
    masks,
    moving_statistics,
    outputs,
    small_batches,
)
from tests.syncbn.features.setting import CHANNELS, Check, Report
from tests.syncbn.worlds import World

CHECKS: dict[str, Check] = {
    "rank 2": axes.axis_check((CHANNELS,), -1),
    "rank 3, channels first": axes.axis_check((CHANNELS, 4), 1),
    "rank 3, channels before the batch": axes.axis_check((CHANNELS, 4), 0, batch_axis=1),
    "rank 4, channels last": axes.axis_check((3, 2, CHANNELS), -1),
    "rank 4, channels first": axes.axis_check((CHANNELS, 3, 2), 1),
    "rank 4, channels in the middle": axes.axis_check((3, CHANNELS, 2), 2),
    "rank 5, channels last": axes.axis_check((2, 3, 2, CHANNELS), 4),
    "rank 5, channels first": axes.axis_check((CHANNELS, 2, 3, 2), -4),
    "unknown shapes": axes.unknown_shapes,
    "renorm": moving_statistics.renorm,
    "bessel correction": moving_statistics.bessel_correction,
    "zero debias": moving_statistics.zero_debias,
    "adjustment": outputs.adjustment,
    "activation": outputs.activation,
    "residual": outputs.residual((CHANNELS,), -1, None),
    "residual and ReLU": outputs.residual((3, 2, CHANNELS), -1, "relu"),
    "residual and ReLU, channels first": outputs.residual((CHANNELS, 3, 2), 1, "relu"),
    "ghost batches": ghost_batches.ghost(weighted=False),
    "weighted ghost batches": ghost_batches.ghost(weighted=True),
    "group of one": groups.group_of_one,
    "group of all": groups.group_of_all,
    "two groups": groups.two_groups,
    "not synchronized": groups.not_synchronized,
    "used twice": composition.used_twice,
    "two branches": composition.two_branches,
    "accumulated gradients": composition.accumulated_gradients,
    "mask": masks.masked(lambda u: u > 0.4, None),
    "NaN behind the mask": masks.masked(lambda u: u > 0.4, np.nan),
    "infinity behind the mask": masks.masked(lambda u: u > 0.4, np.inf),
    "everything masked": masks.masked(lambda u: u > 2.0, None),
    "NaN behind a full mask": masks.masked(lambda u: u > 2.0, np.nan),
    "count of one": small_batches.count_of_one,
    "one row each": small_batches.one_row_each,
}
# Checks after which moving statistics may differ between ranks.
SEPARATE = {"group of one", "two groups", "not synchronized"}


def run(world: World) -> dict[str, list[Report]]:
    """Every check on this world; for each the reports of the ranks held here."""
    return {name: check(world) for name, check in CHECKS.items()}
