"""The store of layers that functions create, with TensorFlow 1's scopes and `reuse`."""

import logging
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import keras
import tensorflow as tf

from syncbn.layer import SyncBatchNormalization

_LOG = logging.getLogger(__name__)


@dataclass
class _Pass:
    """One forward pass through a network, per thread and so per replica."""

    store: "LayerStore"
    seen: set[str] = field(default_factory=set)
    token: Token | None = None


_pass: ContextVar[_Pass | None] = ContextVar("syncbn_legacy_pass", default=None)


class LayerStore(keras.layers.Layer):
    """Layers by the name of their scope, created on first use.

    The store is a Keras layer: as an attribute of a model, it adds its weights to `model.weights`,
    to checkpoints and to the optimizer.

    `with store:` around a forward pass gives scopes their meaning in TensorFlow 1: default names
    are numbered from the start in every pass (`BatchNorm`, `BatchNorm_1`, ...), later passes reuse
    the layers of the first one, and the same name twice in one pass is an error without `reuse`.

    Example:
        class Network(keras.Model):
            def __init__(self):
                super().__init__()
                self.norms = syncbn.legacy.LayerStore()

            def call(self, inputs, training=False):
                with self.norms:
                    return syncbn.legacy.batch_norm(inputs, is_training=training)
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.named: dict[str, SyncBatchNormalization] = {}
        self._arguments: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "LayerStore":
        outer = _pass.get()
        within = outer is not None and outer.store is self
        now = _Pass(self, outer.seen) if outer and within else _Pass(self)
        now.token = _pass.set(now)
        return self

    def __exit__(self, *exception: object) -> None:
        now = _pass.get()
        if now is not None and now.token is not None:
            _pass.reset(now.token)

    def __getitem__(self, name: str) -> SyncBatchNormalization:
        """The layer of a scope.

        Raises:
            KeyError: There is none; the message lists the existing ones.
        """
        if name not in self.named:
            raise KeyError(f"no layer {name!r}; there are: {', '.join(self.named) or 'none'}")
        return self.named[name]

    def clear(self) -> None:
        """Removes all layers, like `tf.reset_default_graph`."""
        self.named.clear()
        self._arguments.clear()

    def obtain(
        self,
        scope: Any,
        default_name: str,
        reuse: Any,
        plain: dict[str, Any],
        make: Callable[[str], SyncBatchNormalization],
    ) -> SyncBatchNormalization:
        """The layer of a scope, found or created.

        Args:
            scope: A name below the current variable scope, a `tf.compat.v1.VariableScope`, or None
                for a numbered `default_name`.
            default_name: See `scope`.
            reuse: True: the layer must exist; otherwise it is created if missing.
            plain: Arguments to compare with those that the layer was created with.
            make: Creates a layer of the given name.

        Raises:
            ValueError: See the class; also `reuse=True` without a scope or a layer, a layer created
                with other arguments, or no scope inside a tf.function outside `with store:`.
        """
        automatic = tf.compat.v1.AUTO_REUSE
        if reuse not in (None, True, False, automatic):
            raise ValueError(
                "reuse must be None, True, False or tf.compat.v1.AUTO_REUSE. "
                f"Received: reuse={reuse!r}"
            )
        passing = _pass.get()
        name = self._name(scope, default_name, reuse, passing)
        if name not in self.named:
            if reuse is True:
                raise ValueError(
                    f"reuse=True needs an existing layer. Received: scope {name!r}; there are: "
                    f"{', '.join(self.named) or 'none'}"
                )
            self.named[name] = make(name)
            self._arguments[name] = plain
        elif passing is not None and name in passing.seen and reuse in (None, False):
            raise ValueError(
                f"scope {name!r} is already used in this pass: give each layer its own scope, or "
                "reuse=True to share weights"
            )
        for argument, value in plain.items():
            before = self._arguments[name][argument]
            if before != value:
                raise ValueError(
                    f"scope {name!r} was created with {argument}={before!r} and is used again with "
                    f"{argument}={value!r}: give each layer its own scope"
                )
        if passing is not None:
            passing.seen.add(name)
        return self.named[name]

    def _name(self, scope: Any, default_name: str, reuse: Any, passing: _Pass | None) -> str:
        if isinstance(scope, tf.compat.v1.VariableScope):
            return scope.name
        surrounding = tf.compat.v1.get_variable_scope().name
        prefix = f"{surrounding}/" if surrounding else ""
        if scope is not None:
            if not isinstance(scope, str) or not scope.strip("/"):
                raise ValueError(
                    "the scope must be a name, a tf.compat.v1.VariableScope or None. "
                    f"Received: {scope!r}"
                )
            return prefix + scope.strip("/")
        if reuse is True:
            raise ValueError("reuse=True needs a scope (or name) to say which layer to reuse")
        if passing is None:
            if not tf.executing_eagerly():
                raise ValueError(
                    f"a {default_name} without a scope inside a tf.function would get new weights "
                    "with every trace: give it a scope (or name), or run the pass inside "
                    "`with store:`, where store = syncbn.legacy.LayerStore() belongs to the model"
                )
            explain_once(
                "unnamed",
                f"a {default_name} without a scope gets new weights with every call; give it a "
                "scope (or name), or run the pass inside `with syncbn.legacy.LayerStore():`",
            )
        taken = self.named if passing is None else passing.seen
        names = (f"{prefix}{default_name}_{n}" if n else prefix + default_name for n in count())
        return next(name for name in names if name not in taken)


_default: LayerStore | None = None
_explained: set[str] = set()


def default_store() -> LayerStore:
    """The store of calls outside any `with store:`."""
    global _default
    if _default is None:
        _default = LayerStore(name="legacy")
    return _default


def current_store() -> LayerStore:
    """The store whose `with` surrounds the call, else the default one.

    Raises:
        ValueError: In a TensorFlow 1 graph, in which Keras 3 cannot create variables.
    """
    graph = tf.compat.v1.get_default_graph()
    if not tf.executing_eagerly() and not hasattr(graph, "captures"):
        raise ValueError(
            "TensorFlow 1 graphs and sessions are not supported: call the function eagerly or "
            "inside a @tf.function, and pass is_training/training as a bool or a tensor argument"
        )
    now = _pass.get()
    return default_store() if now is None else now.store


def explain_once(topic: str, text: str) -> None:
    """Logs an explanation once per topic and process."""
    if topic not in _explained:
        _explained.add(topic)
        _LOG.warning("%s", text)
