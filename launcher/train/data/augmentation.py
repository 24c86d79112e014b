"""Random shifts and mirror images, drawn from seed, epoch and sample: alike on any world size."""

import numpy as np

from launcher.train.data.dataset import Examples


class Augmented(Examples):
    """Images of another source, each moved by up to an eighth of its side, anew in every epoch.

    Args:
        examples: Whose features are (rows, height, width, channels).
        seed: Of the run.
        mirror: Whether half of the images are also mirrored left to right.
        epoch: Set by `in_epoch`.
    """

    def __init__(self, examples: Examples, seed: int, mirror: bool, epoch: int = 0) -> None:
        self._examples, self._seed = examples, seed
        self._mirror, self._epoch = mirror, epoch

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, labels = self._examples.read(indices)
        moved = [self._change(image, int(i)) for image, i in zip(features, indices, strict=True)]
        return np.stack(moved) if moved else features, labels

    def in_epoch(self, seed: int, epoch: int) -> tuple[Examples, np.ndarray]:
        examples, order = self._examples.in_epoch(seed, epoch)
        return Augmented(examples, self._seed, self._mirror, epoch), order

    def _change(self, image: np.ndarray, index: int) -> np.ndarray:
        random = np.random.default_rng([self._seed, self._epoch, index])
        height, width = image.shape[0] // 8, image.shape[1] // 8
        down, right = random.integers(-height, height + 1), random.integers(-width, width + 1)
        padded = np.pad(image, ((height, height), (width, width), (0, 0)))
        top, left = height + down, width + right
        cut = padded[top : top + image.shape[0], left : left + image.shape[1]]
        mirrored = self._mirror and random.random() < 0.5
        return cut[:, ::-1] if mirrored else cut
