"""Random shifts and mirroring, derived from seed, epoch and sample: equal for any world size."""

import numpy as np

from launcher.train.data.dataset import Examples


class Augmented(Examples):
    """Images shifted by up to an eighth of their side, differently in every epoch.

    Args:
        examples: The images, (rows, height, width, channels).
        seed: Seed of the run.
        mirror: Whether to mirror half of the images left to right as well.
        epoch: Current epoch; `in_epoch` sets it.
    """

    def __init__(self, examples: Examples, seed: int, mirror: bool, epoch: int = 0) -> None:
        self._examples, self._seed = examples, seed
        self._mirror, self._epoch = mirror, epoch

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, labels = self._examples.read(indices)
        augmented = [
            self._augment(image, int(i)) for image, i in zip(features, indices, strict=True)
        ]
        return np.stack(augmented) if augmented else features, labels

    def in_epoch(self, seed: int, epoch: int) -> tuple[Examples, np.ndarray]:
        examples, order = self._examples.in_epoch(seed, epoch)
        return Augmented(examples, self._seed, self._mirror, epoch), order

    def _augment(self, image: np.ndarray, index: int) -> np.ndarray:
        random = np.random.default_rng([self._seed, self._epoch, index])
        height, width = image.shape[0] // 8, image.shape[1] // 8
        down, right = random.integers(-height, height + 1), random.integers(-width, width + 1)
        padded = np.pad(image, ((height, height), (width, width), (0, 0)))
        top, left = height + down, width + right
        cut = padded[top : top + image.shape[0], left : left + image.shape[1]]
        mirrored = self._mirror and random.random() < 0.5
        return cut[:, ::-1] if mirrored else cut
