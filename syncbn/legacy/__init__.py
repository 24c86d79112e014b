"""The TensorFlow 1 functions of batch normalization, implemented by the Keras layer."""

from syncbn.legacy.contrib import batch_norm
from syncbn.legacy.layers import batch_normalization
from syncbn.legacy.raw import moments
from syncbn.legacy.store import LayerStore, default_store

__all__ = [
    "LayerStore",
    "batch_norm",
    "batch_normalization",
    "default_store",
    "moments",
]
