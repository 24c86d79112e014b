"""Data sets by name, their partition over ranks, and prefetched batches."""

from launcher.train.data.dataset import DataError, DataSet, Examples
from launcher.train.data.loader import batches
from launcher.train.data.order import Sharding
from launcher.train.data.registry import load_dataset

__all__ = ["DataError", "DataSet", "Examples", "Sharding", "batches", "load_dataset"]
