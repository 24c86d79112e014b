"""Data sets by name. Each module reads one format and is imported on demand."""

from pathlib import Path

from launcher.errors import UsageError
from launcher.train.data.augmentation import Augmented
from launcher.train.data.dataset import DataSet


def load_dataset(
    name: str,
    path: Path | None = None,
    *,
    image_size: int | None = None,
    validation_part: float = 0.2,
    skip_bad_records: bool = False,
    augment: str = "none",
    seed: int = 0,
) -> DataSet:
    """Loads a data set.

    Args:
        name: `digits`, `mnist`, `fashion-mnist`, `cifar10`, `folder`, `tfrecord`, or
            `package.module:function`.
        path: Its file or directory; digits, functions and an installed Fashion-MNIST need none.
        image_size: Side in pixels that images of a folder or of TFRecord files are resized to;
            None for the format's default.
        validation_part: Fraction to hold out if the data set has no test part.
        skip_bad_records: Whether to skip and count unreadable images and records.
        augment: `none`, `shift`, or `flip`; applies to the training part.
        seed: Seed of the augmentation.

    Raises:
        UsageError: The data set needs a path and has none, or the function does not fit.
        DataError: A file is missing or damaged.
    """
    data = _load(name, path, image_size, validation_part, skip_bad_records)
    if augment == "none":
        return data
    train = Augmented(data.train, seed, mirror=augment == "flip")
    return DataSet(data.name, train, data.validation, data.shape, data.classes, data.skipped)


def _load(
    name: str,
    path: Path | None,
    image_size: int | None,
    validation_part: float,
    skip_bad_records: bool,
) -> DataSet:
    if name == "digits":
        from launcher.train.data import digits

        return digits.load(validation_part)
    if ":" in name:
        from launcher.train.data import user

        return user.load(name, validation_part, skip_bad_records)
    if name == "fashion-mnist":
        from launcher.train.data import fashion_mnist

        return fashion_mnist.load(path)
    if path is None:
        raise UsageError(f"--dataset {name} needs --data PATH")
    if name == "mnist":
        from launcher.train.data import mnist

        return mnist.load(path)
    if name == "cifar10":
        from launcher.train.data import cifar10

        return cifar10.load(path)
    if name == "folder":
        from launcher.train.data import folder

        return folder.load(path, image_size, validation_part, skip_bad_records)
    from launcher.train.data import tfrecord

    return tfrecord.load(path, image_size, validation_part, skip_bad_records)
