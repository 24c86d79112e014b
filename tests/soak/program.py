"""What each rank of a soaked job runs: steps, evaluations and checkpoints until it is told to stop.

`python -m tests.soak.program STEPS_PER_EPOCH DIRECTORY`, under the launcher.
"""

import sys
from pathlib import Path

import keras
import numpy as np

import syncbn
from launcher import heartbeat
from launcher.atomic import replace_file

_KEPT = 3


class Saves(keras.callbacks.Callback):
    """A checkpoint an epoch, of which the latest few stay, and a heartbeat a batch."""

    def __init__(self, directory: Path, rank: int) -> None:
        super().__init__()
        self._directory, self._rank, self._step = directory, rank, 0
        self._heartbeat = heartbeat.Heartbeat.from_environment()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self._step += 1
        self._heartbeat.beat("training", step=self._step)

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self._heartbeat.beat("saving", step=self._step)
        if self._rank == 0:
            # Not by `model.save`: Keras 3.15 loses 73 kB with every file, also without syncbn.
            weights = self.model.get_weights()
            path = self._directory / f"epoch-{epoch:08d}.npz"
            replace_file(path, lambda file: np.savez(file, *weights))
            for old in sorted(self._directory.glob("epoch-*.npz"))[:-_KEPT]:
                old.unlink()
        self._heartbeat.beat("training", step=self._step)


def main(steps: int, directory: Path) -> None:
    ranks = syncbn.init()
    generator = np.random.default_rng(ranks.rank)
    x = generator.normal(size=(8 * steps, 8, 8, 1)).astype("float32")
    y = generator.integers(0, 10, len(x))
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, use_bias=False),
            syncbn.SyncBatchNormalization(activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        syncbn.DistributedOptimizer(keras.optimizers.Adam(0.001)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    watch = [
        syncbn.callbacks.BroadcastVariables(),
        syncbn.callbacks.AverageMetrics(),
        Saves(directory, ranks.rank),
    ]
    held_out = (x[:16], y[:16])
    model.fit(
        x, y, batch_size=8, epochs=10**6, verbose=0, validation_data=held_out, callbacks=watch
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
