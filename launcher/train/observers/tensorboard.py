"""`--tensorboard`: scalars for TensorBoard, in OUTPUT/tensorboard.

TensorFlow alone writes them; the tensorboard package is needed only to view them.
"""

from pathlib import Path

import tensorflow as tf

from launcher.train.observers.base import EpochDone, Observer, StepDone
from launcher.train.observers.journal import thinning


class TensorBoard(Observer):
    """Writes scalars of the training steps that the journal records, and of each evaluation."""

    what = "--tensorboard"

    def __init__(self, directory: Path) -> None:
        self._writer = tf.summary.create_file_writer(str(directory))
        # Marks values as scalars for TensorBoard.
        metadata = tf.compat.v1.SummaryMetadata(data_class=1)
        metadata.plugin_data.plugin_name = "scalars"
        self._metadata = metadata.SerializeToString()

    def on_step(self, step: StepDone) -> None:
        if step.step % thinning(step.step) == 0:
            scalars = {
                "train/loss": step.loss,
                "train/accuracy": step.accuracy,
                "train/learning_rate": step.learning_rate,
                "train/images_per_second": step.rows / step.seconds,
            }
            self._write(scalars, step.step)

    def on_epoch(self, epoch: EpochDone) -> None:
        scalars = {
            "validation/loss": epoch.validation_loss,
            "validation/accuracy": epoch.validation_accuracy,
        }
        self._write({tag: x for tag, x in scalars.items() if x is not None}, epoch.step)
        self._writer.flush()

    def _write(self, scalars: dict[str, float], step: int) -> None:
        with self._writer.as_default():
            for tag, value in scalars.items():
                tensor = tf.constant(value, tf.float32)
                tf.summary.write(tag, tensor, step=step, metadata=self._metadata)
