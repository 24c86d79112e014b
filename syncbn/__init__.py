"""Synchronized batch normalization and data-parallel training for Keras 3."""

from syncbn import callbacks, legacy
from syncbn.broadcast import broadcast_variables
from syncbn.communicators import Communicator, communicator, init
from syncbn.layer import SyncBatchNormalization
from syncbn.surgery import (
    convert_sync_batchnorm,
    fold_batchnorm,
    recompute_statistics,
    revert_sync_batchnorm,
)
from syncbn.tape import DistributedGradientTape
from syncbn.training import DistributedOptimizer, weigh_rows

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
    "recompute_statistics",
    "revert_sync_batchnorm",
    "weigh_rows",
]
