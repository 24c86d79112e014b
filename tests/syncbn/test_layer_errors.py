"""Invalid input: each error names the argument, the expected and the received value."""

import re
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import syncbn
from syncbn import SyncBatchNormalization
from syncbn.errors import SyncbnError, UnknownBackendError, WorldError

X = np.random.default_rng(0).normal(size=(6, 4, 3)).astype("float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"communicator": "nccl"}, "communicator must be .* Received: communicator='nccl'"),
        ({"communicator": None}, "communicator must be .* Received: communicator=None"),
        ({"communicator": ["mpi"]}, r"communicator must be .* Received: communicator=\['mpi'\]"),
        ({"group_size": 0}, "group_size must be a positive integer or None. Received: .*=0"),
        ({"group_size": 2.0}, "group_size must be a positive integer or None. Received: .*=2.0"),
        ({"virtual_batch_size": -1}, "virtual_batch_size must be a positive integer"),
        ({"virtual_batch_size": True}, "virtual_batch_size must be a positive integer"),
        ({"virtual_batch_size": 2, "renorm": True}, "choose one.*virtual_batch_size=2"),
        ({"virtual_batch_size": 2, "group_size": 2}, "choose one.*group_size=2"),
        ({"adjustment": 3}, "adjustment must be callable or None. Received: adjustment=3"),
        ({"momentum": 1.5}, r"`momentum` must be in \[0, 1\]. Received: momentum=1.5"),
        ({"renorm_momentum": -0.1, "renorm": True}, r"`renorm_momentum` must be in \[0, 1\]"),
        ({"epsilon": -1e-3}, "epsilon must not be negative. Received: epsilon=-0.001"),
        (
            {"renorm": True, "renorm_clipping": {"rmaxx": 1.0}},
            "Received invalid keys: renorm_clipping may have .* Received: .*rmaxx",
        ),
        (
            {"renorm": True, "renorm_clipping": {"rmax": 1.0, "rmin": 2.0}},
            "rmax .*rmin.* Received: .*rmax.*1.0.*rmin.*2.0",
        ),
        ({"renorm": True, "renorm_clipping": {"dmax": -1.0}}, "dmax .* Received: .*dmax.*-1.0"),
    ],
    ids=str,
)
def test_constructor(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyncBatchNormalization(**arguments)


def test_unknown_communicator_is_of_the_tree() -> None:
    with pytest.raises(UnknownBackendError, match="auto, horovod, mpi, tf, local") as caught:
        SyncBatchNormalization(communicator="nccl")
    assert isinstance(caught.value, SyncbnError)
    with pytest.raises(UnknownBackendError, match=r"backend must be .* backend='gloo'"):
        syncbn.init("gloo")


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"axis": 3}, (4, 5, 3), r"axis must lie in \[-3, 3\).*axis=3.*\(4, 5, 3\)"),
        ({"axis": -4}, (4, 5, 3), r"axis must lie in .*axis=-4"),
        ({}, (4, None), r"channel axis must have a static size.*axis=-1.*\(4, None\)"),
        ({}, (4,), r"batch axis and a channel axis.*\(4,\)"),
        ({"axis": 0, "virtual_batch_size": 2}, (4, 3), "batch on axis 0.*axis=0"),
    ],
)
def test_build(arguments: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyncBatchNormalization(**arguments).build(shape)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"mask": np.ones(6, bool)}, r"mask must have one dimension fewer.*\(6,\).*\(6, 4, 3\)"),
        ({"mask": np.ones((6, 4, 3), bool)}, "mask must have one dimension fewer"),
        ({"mask": np.ones((6, 5), bool)}, r"mask must have the shape.*\(6, 5\).*\(6, 4, 3\)"),
        ({"batch_weights": np.ones(5)}, r"batch_weights must have shape .*\(6,\).*\(5,\)"),
        ({"batch_weights": np.ones((6, 1))}, r"batch_weights must have shape .*\(6, 1\)"),
        ({"batch_weights": np.array([1.0, -2, 1, 1, 1, 1])}, "finite and not be negative.*-2"),
        ({"batch_weights": np.array([1.0, np.nan, 1, 1, 1, 1])}, "finite and not be negative.*nan"),
    ],
    ids=str,
)
def test_call(call: dict[str, np.ndarray], message: str, training: bool) -> None:
    with pytest.raises(ValueError, match=message):
        SyncBatchNormalization()(X, training=training, **call)


def test_negative_weights_in_a_graph() -> None:
    layer = SyncBatchNormalization()
    step = tf.function(lambda w: layer(X, training=True, batch_weights=w))
    step(tf.ones(6))
    with pytest.raises(tf.errors.InvalidArgumentError, match="batch_weights must be finite"):
        step(-tf.ones(6))


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_inputs_that_are_no_floats(dtype: str) -> None:
    message = f"inputs must be floating point.*Received: inputs of dtype {dtype}"
    with pytest.raises(ValueError, match=message):
        SyncBatchNormalization()(np.ones((4, 3), dtype), training=True)


def test_virtual_batch_that_does_not_divide() -> None:
    layer = SyncBatchNormalization(virtual_batch_size=4)
    message = "virtual_batch_size must divide the batch.*virtual_batch_size=4, a batch of 6"
    with pytest.raises(ValueError, match=message):
        layer(X, training=True)
    layer(X, training=False)  # Inference has no blocks.


def test_virtual_batch_that_does_not_divide_an_unknown_batch() -> None:
    layer = SyncBatchNormalization(virtual_batch_size=4)
    step = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec([None, 4, 3])]
    )
    step(X[:4])
    with pytest.raises(tf.errors.InvalidArgumentError, match="virtual_batch_size must divide"):
        step(X)


def test_group_that_does_not_divide_the_world() -> None:
    layer = SyncBatchNormalization(group_size=2)
    message = re.escape("group_size must divide the 1 ranks of the job (one of [1]). Received: ")
    with pytest.raises(WorldError, match=message + "group_size=2"):
        layer(X, training=True)


def test_wrong_rank_of_later_inputs() -> None:
    layer = SyncBatchNormalization()
    layer(X)
    with pytest.raises(ValueError, match="expected ndim=3, found ndim=2"):
        layer(X[0])


def test_renorm_clipping_without_renorm_is_kept_as_keras_does() -> None:
    layer = SyncBatchNormalization(renorm_clipping={"rmax": 2.0})
    assert layer.renorm_clipping == {"rmax": 2.0}
    assert keras.layers.BatchNormalization(renorm_clipping={"rmax": 2.0}).renorm_clipping == {
        "rmax": 2.0
    }


def test_named_backend_without_its_job() -> None:
    # A single process does not need Horovod, which may not be installed.
    layer = SyncBatchNormalization(communicator="horovod")
    np.testing.assert_array_equal(
        layer(X, training=True), SyncBatchNormalization()(X, training=True)
    )
