"""Both TensorFlow 1 functions with one signature, and images for them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from syncbn.legacy import batch_norm, batch_normalization

FUNCTIONS: dict[str, Callable[..., Any]] = {"contrib": batch_norm, "layers": batch_normalization}


def images(rank: int = 4, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    shape = {2: (12, 3), 3: (4, 5, 3), 4: (4, 5, 5, 3), 5: (2, 3, 4, 4, 3)}[rank]
    return (np.random.default_rng(seed).normal(size=shape) * 3 + 2).astype(dtype)


def named(
    function: Callable[..., Any], x: Any, training: Any, scope: str = "bn", **options: Any
) -> Any:
    if function is batch_norm:
        return batch_norm(x, is_training=training, scope=scope, **options)
    return batch_normalization(x, training=training, name=scope, **options)
