"""Data sets by name. Each module reads one kind of file and is imported when it is asked for."""

from importlib import import_module
from pathlib import Path

import numpy as np

from launcher.errors import UsageError
from launcher.train.config import TrainConfig
from launcher.train.data.augmentation import Augmented
from launcher.train.data.dataset import DataSet, hold_out, standardized


def load_dataset(config: TrainConfig) -> DataSet:
    """The data set of `config.dataset`.

    Raises:
        UsageError: It needs `--data` and has none.
        DataError: A file is missing or damaged.
    """
    if config.dataset == "digits":
        data = _digits(config)
    elif ":" in config.dataset:
        data = import_module("launcher.train.data.user").load(config)
    else:
        if config.data is None:
            raise UsageError(f"--dataset {config.dataset} needs --data PATH")
        module = import_module(f"launcher.train.data.{config.dataset}")
        data = module.load(config, Path(config.data))
    if config.augment == "none":
        return data
    train = Augmented(data.train, config.seed, mirror=config.augment == "flip")
    return DataSet(data.name, train, data.validation, data.shape, data.classes, data.skipped)


def _digits(config: TrainConfig) -> DataSet:
    """1,797 handwritten digits of 8 by 8 pixels, part of scikit-learn (from UCI's test set)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images[..., np.newaxis].astype(np.float32)
    labels = bunch.target.astype(np.int32)
    train, held = hold_out(len(labels), config.validation_part)
    return standardized(
        "digits", (images[train], labels[train]), (images[held], labels[held]), classes=10
    )
