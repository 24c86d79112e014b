"""Data sets by name. Each module reads one kind of file and is imported when it is asked for."""

from importlib import import_module
from pathlib import Path

from launcher.errors import UsageError
from launcher.train.config import TrainConfig
from launcher.train.data.augmentation import Augmented
from launcher.train.data.dataset import DataSet


def load_dataset(config: TrainConfig) -> DataSet:
    """The data set of `config.dataset`.

    Raises:
        UsageError: It needs `--data` and has none.
        DataError: A file is missing or damaged.
    """
    if config.dataset == "digits":
        data = import_module("launcher.train.data.digits").load(config)
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
