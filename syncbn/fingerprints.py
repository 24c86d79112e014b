"""Compares the trained variables of neighbouring ranks by fingerprints.

Each rank sends its fingerprints to the next one, without blocking. `consistency` decides when.
"""

import json
import threading
import time
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

from syncbn import dispatch
from syncbn.communicators.base import Communicator
from syncbn.communicators.mailboxes import Mailbox
from syncbn.errors import DivergenceError

# Longest interval between two comparisons, in steps. One takes 0.05 s for 100 MB of variables.
_MAX_INTERVAL = 1024
# Number of layers whose γ and β are compared at exit.
_MAX_LAYERS = 512
# Number of comparisons that wait for the fingerprints of the neighbour.
_MAX_PENDING = 16
_FINAL_WAIT_SECONDS = 2.0

_NOT_AVERAGED = (
    "No gradient of this optimizer is averaged over the ranks: train with "
    "syncbn.DistributedOptimizer(optimizer) (for a saved model: syncbn.load_model(file)), and make "
    "the ranks start equal with fit(callbacks=[syncbn.callbacks.BroadcastVariables()]) or "
    "syncbn.broadcast_variables(model)."
)
_NOT_EQUAL_AT_START = (
    "The ranks did not start equal: add fit(callbacks=[syncbn.callbacks.BroadcastVariables()]), "
    "or call syncbn.broadcast_variables(model) before the first step."
)
_NO_LONGER_EQUAL = (
    "They were equal before: check for assignments, or changes of the learning rate, that happen "
    "on some ranks only."
)
_OPT_OUT = (
    "If the ranks are meant to differ, call syncbn.train_independently(optimizer) or "
    "syncbn.init(check_consistency=False)"
)


def checksum(value: Any) -> int:
    """CRC-32 of the bytes of a variable or an array."""
    return zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


def fingerprint(variables: Sequence[Any]) -> int:
    """CRC-32 over the checksums of several variables, in their order."""
    return zlib.crc32(np.array([checksum(v) for v in variables], np.uint32).tobytes())


@dataclass
class _Training:
    """The state of the check for one optimizer.

    Attributes:
        label: Its name, the same on every rank.
        averaged: Whether syncbn averages its gradients.
        steps: Updates seen.
        countdown: Updates in graphs until the next comparison.
        interval: The initial value of the countdown.
        sent: Number of fingerprints that this rank has sent.
        compared: Whether a comparison has found the ranks equal.
    """

    label: str
    averaged: bool
    steps: int = 0
    countdown: tf.Variable | None = None
    interval: int = 1
    sent: int = 0
    compared: bool = False


@dataclass
class _Comparison:
    training: _Training
    step: int
    paths: list[str]
    hashes: list[int]
    sender: int


class ConsistencyCheck:
    """The comparisons of this process.

    Args:
        world: The communicator over all ranks.
        mailbox: Exchanges fingerprints.
        generation: Distinguishes the keys of successive worlds in the same processes.

    Attributes:
        gradients_are_averaged: Whether a tape averages gradients before optimizers get them.
    """

    def __init__(self, world: Communicator, mailbox: Mailbox, generation: int) -> None:
        self._world, self._mailbox, self._generation = world, mailbox, generation
        self._trainings: weakref.WeakKeyDictionary[Any, _Training] = weakref.WeakKeyDictionary()
        self._unaveraged: Counter[str] = Counter()
        self._pending: dict[str, _Comparison] = {}
        self._last_unaveraged: tuple[Any, list[Any]] | None = None
        self.gradients_are_averaged = False
        self._layers: dict[int, list[Any]] = {}
        # TensorFlow may compare two optimizers of one step on two threads.
        self._lock = threading.RLock()

    def after_update(
        self,
        optimizer: Any,
        variables: Sequence[Any],
        averaged_by: str | None,
        group: Communicator | None,
    ) -> None:
        """Compares the variables after an update that has been traced, or has run eagerly.

        Args:
            optimizer: Any Keras optimizer.
            variables: The variables that it has updated.
            averaged_by: The name of the collective that averages its gradients, or None.
            group: The ranks that should be equal; None for all.

        Raises:
            DivergenceError: In eager mode; in a graph the step fails with its message.
        """
        group = group or self._world
        variables = list(variables)
        training = self._trainings.get(optimizer)
        if training is None:
            training = self._trainings[optimizer] = self._new(variables, averaged_by)
        if not training.averaged:
            self._last_unaveraged = optimizer, variables
        paths = [getattr(v, "path", getattr(v, "name", "")) for v in variables]

        def compare(step: Any, *values: Any) -> None:
            self._compare(training, int(step), paths, list(map(np.asarray, values)), group)

        if tf.executing_eagerly():
            training.steps += 1
            if _due(training.steps):
                compare(optimizer.iterations, *variables)
        elif not dispatch.inside_xla():
            self._compare_in_graph(training, optimizer.iterations, variables, compare)

    def _new(self, variables: list[Any], averaged_by: str | None) -> _Training:
        if averaged_by is not None:
            return _Training(averaged_by, True)
        # Counted per set of shapes: a rank may train an additional model alone.
        shapes = ";".join(f"{v.dtype}{v.shape}" for v in variables)
        self._unaveraged[shapes] += 1
        return _Training(f"plain_{self._unaveraged[shapes]}", False)

    def note_layer(self, layer: Any) -> None:
        """Stores γ and β of a synchronized layer in training for the final check."""
        self._layers[id(layer)] = list(layer.trainable_variables)
        while len(self._layers) > _MAX_LAYERS:
            del self._layers[next(iter(self._layers))]

    @staticmethod
    def _compare_in_graph(
        training: _Training, iterations: Any, variables: list[Any], compare: Callable[..., None]
    ) -> None:
        # A countdown adds only a few operations to each step.
        with tf.device("CPU:0"):
            if training.countdown is None:
                with tf.init_scope():
                    training.countdown = tf.Variable(1, dtype=tf.int32, trainable=False)
            countdown = training.countdown
            left = countdown.assign_sub(1, read_value=True)

            def compare_and_wait(*values: Any) -> np.int32:
                compare(*values)
                training.steps += training.interval
                training.interval = min(training.steps, _MAX_INTERVAL)
                return np.int32(training.interval)

            def run() -> None:
                values = [tf.convert_to_tensor(v) for v in (iterations, *variables)]
                again = tf.numpy_function(compare_and_wait, values, tf.int32)
                countdown.assign(tf.reshape(again, []))

            due = tf.equal(left, 0)
            graph = due.graph
            known = len(graph.get_operations())
            tf.cond(due, run, lambda: None)
            # Not lowered: a lowered If adds one operation per variable to every step.
            for operation in graph.get_operations()[known:]:
                if operation.type in ("If", "StatelessIf"):
                    operation._set_attr(
                        "_lower_using_switch_merge", attr_value_pb2.AttrValue(b=False)
                    )

    def _compare(
        self,
        training: _Training,
        step: int,
        paths: list[str],
        values: list[np.ndarray],
        group: Communicator,
    ) -> None:
        size, first = group.size, self._world.rank - group.rank
        if size == 1:
            return
        hashes = [checksum(value) for value in values]
        shapes = zlib.crc32(";".join(f"{v.dtype}{v.shape}" for v in values).encode())
        training.sent += 1
        key = f"{self._generation}.{training.label}.{shapes:x}.{training.sent}"
        before, after = ((group.rank + offset) % size + first for offset in (-1, 1))
        with self._lock:
            self._mailbox.send(key, json.dumps(hashes), after)
            self._pending[key] = _Comparison(training, step, paths, hashes, before)
            while len(self._pending) > _MAX_PENDING:
                del self._pending[next(iter(self._pending))]
            self.check_arrived()

    def check_arrived(self) -> None:
        """Compares the fingerprints that have arrived.

        Raises:
            DivergenceError: A variable differs between this rank and its neighbour.
        """
        with self._lock:
            for key, sent in list(self._pending.items()):
                text = self._mailbox.receive(key, sent.sender)
                if text is None:
                    continue
                del self._pending[key]
                hashes = zip(sent.paths, sent.hashes, json.loads(text), strict=True)
                differing = [path for path, ours, theirs in hashes if ours != theirs]
                if differing:
                    raise DivergenceError(self._explain(sent, differing))
                sent.training.compared = True

    def _explain(self, sent: _Comparison, differing: list[str]) -> str:
        ranks = sorted((self._world.rank, sent.sender))
        others = f" (and {len(differing) - 1} more variables)" if len(differing) > 1 else ""
        if not (sent.training.averaged or self.gradients_are_averaged):
            missing = _NOT_AVERAGED
        elif sent.training.compared:
            missing = _NO_LONGER_EQUAL
        else:
            missing = _NOT_EQUAL_AT_START
        return (
            f"the ranks do not train one model: after step {sent.step} {differing[0]}{others} "
            f"differs between the ranks {ranks[0]} and {ranks[1]}. {missing} {_OPT_OUT}"
        )

    def final_check(self, layers: bool) -> None:
        """Compares the final variables at exit, including those trained in graphs under XLA.

        Args:
            layers: Whether to compare synchronized layers too, for programs that train without a
                Keras optimizer.

        Raises:
            DivergenceError: See `check_arrived`.
        """
        if self._last_unaveraged is not None:
            optimizer, trained = self._last_unaveraged
            if training := self._trainings.get(optimizer):
                self._compare_at_end(training, trained, int(optimizer.iterations))
        if layers:
            variables = [variable for some in self._layers.values() for variable in some]
            self._compare_at_end(_Training("layers", False), variables, 0)
        deadline = time.monotonic() + _FINAL_WAIT_SECONDS
        while self._pending and time.monotonic() < deadline:
            time.sleep(0.02)
            self.check_arrived()

    def _compare_at_end(self, training: _Training, variables: list[Any], step: int) -> None:
        # The label makes ranks comparable that have taken different numbers of steps.
        training.label, training.sent = f"{training.label}.end", 0
        paths = [getattr(variable, "path", "") for variable in variables]
        self._compare(training, step, paths, [np.asarray(v) for v in variables], self._world)


def _due(step: int) -> bool:
    return step & (step - 1) == 0 or step % _MAX_INTERVAL == 0
