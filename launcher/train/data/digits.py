"""Real digits that come with the package, so that a first training downloads nothing.

The test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (UCI
Machine Learning Repository, 1998, doi:10.24432/C50P49, CC BY 4.0): the digits of scikit-learn's
`load_digits`, in a file of our own because scikit-learn takes longer to import than they to train.
"""

from pathlib import Path

import numpy as np

from launcher.train.config import TrainConfig
from launcher.train.data.dataset import DataSet, hold_out, standardized

_FILE = Path(__file__).with_name("digits.npz")


def load(config: TrainConfig) -> DataSet:
    """1,797 handwritten digits: (8, 8, 1) each, whole numbers from 0 to 16 before standardizing."""
    with np.load(_FILE) as content:
        images = content["images"][..., np.newaxis].astype(np.float32)
        labels = content["labels"].astype(np.int32)
    train, held = hold_out(len(labels), config.validation_part)
    return standardized(
        "digits", (images[train], labels[train]), (images[held], labels[held]), classes=10
    )
