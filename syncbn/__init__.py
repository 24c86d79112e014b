"""Synchronized batch normalization and data-parallel training for Keras 3."""

from syncbn import callbacks, legacy
from syncbn.broadcast import broadcast_variables
from syncbn.communicators import Communicator, communicator, init
from syncbn.compiled_models import load_model, weigh_rows
from syncbn.consistency import train_independently
from syncbn.layer import SyncBatchNormalization
from syncbn.optimizer import DistributedOptimizer
from syncbn.surgery import (
    convert_sync_batchnorm,
    fold_batchnorm,
    recompute_statistics,
    revert_sync_batchnorm,
)
from syncbn.tape import DistributedGradientTape

__all__ = [
    "Communicator",
    "DistributedGradientTape",
    "DistributedOptimizer",
    "SyncBatchNormalization",
    "broadcast_variables",
    "callbacks",
    "communicator",
    "convert_sync_batchnorm",
    "fold_batchnorm",
    "init",
    "legacy",
    "load_model",
    "recompute_statistics",
    "revert_sync_batchnorm",
    "train_independently",
    "weigh_rows",
]
