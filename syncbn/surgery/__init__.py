"""Functions on whole models: convert, revert, fold, recompute statistics."""

from syncbn.surgery.convert import convert_sync_batchnorm, revert_sync_batchnorm
from syncbn.surgery.fold import fold_batchnorm
from syncbn.surgery.recompute import recompute_statistics

__all__ = [
    "convert_sync_batchnorm",
    "fold_batchnorm",
    "recompute_statistics",
    "revert_sync_batchnorm",
]
