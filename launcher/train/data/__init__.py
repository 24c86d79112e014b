"""Data sets by name, how ranks share them, and how batches are fetched ahead."""

from launcher.train.data.dataset import DataError, DataSet, Examples
from launcher.train.data.loader import batches
from launcher.train.data.registry import load_dataset

__all__ = ["DataError", "DataSet", "Examples", "batches", "load_dataset"]
