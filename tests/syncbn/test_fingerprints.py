"""Fingerprints of two optimizers that one step updates concurrently."""

import json
import time
import types
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from syncbn.communicators.mailboxes import Mailbox
from syncbn.fingerprints import ConsistencyCheck

_OPTIMIZERS = 8


class _SlowMailbox(Mailbox):
    """The fingerprints of the neighbour arrive after a short delay."""

    def __init__(self, fingerprint: int) -> None:
        self._fingerprint = fingerprint

    def send(self, key: str, text: str, receiver: int) -> None:
        time.sleep(0.01)

    def receive(self, key: str, sender: int) -> str | None:
        time.sleep(0.01)
        return json.dumps([self._fingerprint])


def test_optimizers_of_one_step_are_compared_by_several_threads() -> None:
    variable = keras.Variable(np.ones(3, "float32"))
    world: Any = types.SimpleNamespace(rank=0, size=2)
    check = ConsistencyCheck(
        world, _SlowMailbox(zlib.crc32(np.ones(3, "float32").tobytes())), generation=0
    )

    def update(_: int) -> None:
        check.after_update(keras.optimizers.SGD(), [variable], None, None)

    with ThreadPoolExecutor(_OPTIMIZERS) as threads:
        assert list(threads.map(update, range(_OPTIMIZERS))) == [None] * _OPTIMIZERS
    check.check_arrived()
