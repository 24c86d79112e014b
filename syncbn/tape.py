"""DistributedGradientTape: averaged gradients for loops that need them before the optimizer."""

import itertools
from typing import Any

import keras
import tensorflow as tf

from syncbn import consistency
from syncbn.communicators import communicator as current_communicator
from syncbn.communicators.base import Communicator
from syncbn.gradients import densify, keras_reduces, presence_of, reduce_gradients, wire_dtype

_serial = itertools.count()


class DistributedGradientTape:
    """A `tf.GradientTape` whose `gradient` is averaged over the ranks.

    Wraps a tape or creates one: both `with DistributedGradientTape() as tape:` and
    `tape = DistributedGradientTape(tape)` work. All other methods are those of the wrapped tape.

    Args:
        tape: The tape to wrap; None creates one.
        communicator: None for `syncbn.communicator()`.
        compression: `"float16"` or `"bfloat16"` to send half-precision gradients, or None.
        average: False to sum over ranks instead.
        persistent: As for `tf.GradientTape`, if it is created here.

    Raises:
        ValueError: `compression` is unknown.
    """

    def __init__(
        self,
        tape: tf.GradientTape | None = None,
        communicator: Communicator | None = None,
        compression: str | None = None,
        average: bool = True,
        persistent: bool = False,
    ) -> None:
        self._tape = tf.GradientTape(persistent=persistent) if tape is None else tape
        self._communicator = communicator
        self._wire = wire_dtype(compression)
        self._average = average
        self._collective = f"tape_{next(_serial)}"

    def __enter__(self) -> "DistributedGradientTape":
        self._tape.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._tape.__exit__(*exception)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tape, name)

    @tf.autograph.experimental.do_not_convert
    def gradient(
        self, target: Any, sources: Any, output_gradients: Any = None, rows: Any = None
    ) -> Any:
        """As `tf.GradientTape.gradient`, over all ranks.

        With `rows`, `target` is a sum over the rows of this rank, and the result is the gradient of
        the mean over all rows; without, it is the mean of the gradients of all ranks.

        Returns:
            Dense tensors in the structure of `sources`. With several ranks, a source without
            gradient on this rank counts as zero.
        """
        flat_sources = [
            v.value if isinstance(v, keras.Variable) else v for v in tf.nest.flatten(sources)
        ]
        gradients = self._tape.gradient(target, flat_sources, output_gradients)
        communicator = self._communicator or current_communicator()
        if communicator.size > 1 and not keras_reduces():
            consistency.note_tape()
            weight = tf.ones([]) if rows is None else tf.cast(rows, tf.float32)
            dense = [densify(g, v) for g, v in zip(gradients, flat_sources, strict=True)]
            gradients = reduce_gradients(
                dense,
                presence_of(gradients),
                weight,
                communicator,
                self._collective,
                self._average,
                self._wire,
            ).gradients
        return tf.nest.pack_sequence_as(sources, gradients)
