"""Handwritten digits shipped with the package, so that a first run downloads nothing.

The test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (UCI
Machine Learning Repository, 1998, doi:10.24432/C50P49, CC BY 4.0): the same as
scikit-learn's `load_digits`, stored here because importing scikit-learn takes longer than training.
"""

from pathlib import Path

import numpy as np

from launcher.train.data.dataset import DataSet, hold_out, standardized

_FILE = Path(__file__).with_name("digits.npz")


def load(validation_part: float) -> DataSet:
    """1,797 digits of shape (8, 8, 1), integers from 0 to 16 before standardization."""
    with np.load(_FILE) as content:
        images = content["images"][..., np.newaxis].astype(np.float32)
        labels = content["labels"].astype(np.int32)
    train, held = hold_out(len(labels), validation_part)
    return standardized(
        "digits", (images[train], labels[train]), (images[held], labels[held]), classes=10
    )
