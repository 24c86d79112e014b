"""A data set as a configuration asks for it."""

from pathlib import Path
from typing import Any

from launcher.train.config import load_config
from launcher.train.data import DataSet, load_dataset


def load(dataset: str, path: Path | None = None, **options: Any) -> DataSet:
    return load_dataset(load_config({"dataset": dataset, "data": path, **options}))
