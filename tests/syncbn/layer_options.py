"""Options of the layer that its tests of activations and residuals go through.

`mask` and `weights` are arguments of the call.
"""

from typing import Any

import tensorflow as tf

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "channels first": {"axis": 1},
    "renorm": {"renorm": True},
    "ghost batches": {"virtual_batch_size": 2},
    "scaled by channel": {"adjustment": lambda shape: (tf.fill(shape[-1:], 1.5), -0.25)},
    "scaled by position": {"adjustment": lambda shape: (tf.ones(shape) * 1.5, -0.25)},
    "mask": {},
    "weights": {},
}
