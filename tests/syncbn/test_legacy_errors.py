"""Invalid arguments of the two TensorFlow 1 functions, and their messages."""

from collections.abc import Callable

import pytest
import tensorflow as tf

from syncbn.legacy import batch_norm, batch_normalization
from tests.syncbn.legacy_calls import images

pytestmark = pytest.mark.usefixtures("fresh_layers")

v1 = tf.compat.v1


def in_a_graph_of_tensorflow_1() -> None:
    with tf.Graph().as_default():
        batch_norm(v1.placeholder(tf.float32, [None, 3]), scope="bn")


def unnamed_in_a_function() -> None:
    tf.function(lambda x: batch_norm(x)).get_concrete_function(tf.constant(images()))


def used_with_other_arguments() -> None:
    batch_norm(images(), scope="bn", decay=0.9)
    batch_norm(images(), scope="bn", decay=0.5)


BAD: list[tuple[Callable[[], object], str]] = [
    (
        in_a_graph_of_tensorflow_1,
        r"TensorFlow 1 graphs and sessions are not supported: call .* @tf.function",
    ),
    (unnamed_in_a_function, r"without a scope inside a tf.function .*LayerStore"),
    (
        used_with_other_arguments,
        r"scope 'bn' was created with decay=0.9 and is used again with decay",
    ),
    (lambda: batch_norm(images(), reuse=True), r"reuse=True needs a scope"),
    (
        lambda: batch_norm(images(), scope="no", reuse=True),
        r"Received: scope 'no'; there are: none",
    ),
    (lambda: batch_norm(images(), scope=3), r"scope must be a name.* Received: 3"),
    (
        lambda: batch_norm(images(), reuse="yes"),
        r"reuse must be None, True, .* Received: reuse='yes'",
    ),
    (
        lambda: batch_norm(images(), data_format="NHCW"),
        r"must be 'NHWC' or 'NCHW'. Received: .*NHCW",
    ),
    (
        lambda: batch_norm(images().astype("int32")),
        r"floating point. Received: inputs of dtype int32",
    ),
    (lambda: batch_norm(images(), is_training="yes"), r"is_training must be a bool.*'yes'"),
    (
        lambda: batch_normalization(images(), training=2),
        r"training must be a bool, 0 or 1.*training=2",
    ),
    (
        lambda: batch_norm(images(), is_training=tf.constant([True])),
        r"scalar tensor. Received: .*\(1,\)",
    ),
    (lambda: batch_norm(images(), is_training=tf.constant(1.0)), r"Received: .*float32"),
    (
        lambda: batch_norm(images(), param_initializers={"gama": 1}),
        r"keys among beta, gamma, .*gama",
    ),
    (lambda: batch_norm(images(), param_regularizers={"moving_mean": 1}), r"among beta, gamma. "),
    (lambda: batch_normalization(images(), axis=[1, 2]), r"one integer: .*moments.*axis=\[1, 2\]"),
    (lambda: batch_normalization(images(), axis=7), r"axis must lie in"),
    (lambda: batch_norm(images(), renorm=True, renorm_clipping={"rmx": 1}), r"rmx"),
]


@pytest.mark.parametrize(("misuse", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_named(misuse: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        misuse()
