"""Decodes images (PNG, JPEG, BMP, GIF) to arrays of one size with TensorFlow."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

CHANNELS = 3


class UndecodableError(Exception):
    """The bytes are not an image."""


def decode(content: bytes, side: int) -> np.ndarray:
    """(side, side, 3) float32 in −1..1.

    Raises:
        UndecodableError: With TensorFlow's message.
    """
    with tf.device("CPU:0"):
        try:
            image = tf.io.decode_image(content, channels=CHANNELS, expand_animations=False)
        except tf.errors.InvalidArgumentError as error:
            raise UndecodableError(str(error.message).splitlines()[0]) from error
        if tuple(image.shape[:2]) != (side, side):
            image = tf.image.resize(image, (side, side), antialias=True)
        return tf.cast(image, tf.float32).numpy() / 127.5 - 1.0


def decode_all(contents: Sequence[bytes], side: int) -> list[np.ndarray | UndecodableError]:
    """Decodes several images in parallel; an undecodable one yields its error."""

    def one(content: bytes) -> np.ndarray | UndecodableError:
        try:
            return decode(content, side)
        except UndecodableError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, contents))


def stacked(images: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Stacks images to (rows, side, side, 3), also zero rows."""
    return np.stack(images) if images else np.zeros((0, side, side, CHANNELS), np.float32)
