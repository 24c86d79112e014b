"""The two TensorFlow 1 signatures: the same parameters, and the outputs and updates they had."""

import inspect
import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import syncbn
from syncbn import legacy
from syncbn.legacy import LayerStore, batch_norm, batch_normalization, default_store, store
from tests.processes import Launcher

v1 = tf.compat.v1

# As written in TensorFlow 1.15's own files.
CONTRIB = {
    "inputs": inspect.Parameter.empty,
    "decay": 0.999,
    "center": True,
    "scale": False,
    "epsilon": 0.001,
    "activation_fn": None,
    "param_initializers": None,
    "param_regularizers": None,
    "updates_collections": "update_ops",
    "is_training": True,
    "reuse": None,
    "variables_collections": None,
    "outputs_collections": None,
    "trainable": True,
    "batch_weights": None,
    "fused": None,
    "data_format": "NHWC",
    "zero_debias_moving_mean": False,
    "scope": None,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_decay": 0.99,
    "adjustment": None,
}
LAYERS = {
    "inputs": inspect.Parameter.empty,
    "axis": -1,
    "momentum": 0.99,
    "epsilon": 1e-3,
    "center": True,
    "scale": True,
    "beta_initializer": v1.zeros_initializer,
    "gamma_initializer": v1.ones_initializer,
    "moving_mean_initializer": v1.zeros_initializer,
    "moving_variance_initializer": v1.ones_initializer,
    "beta_regularizer": None,
    "gamma_regularizer": None,
    "beta_constraint": None,
    "gamma_constraint": None,
    "training": False,
    "trainable": True,
    "name": None,
    "reuse": None,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
    "fused": None,
    "virtual_batch_size": None,
    "adjustment": None,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"contrib": batch_norm, "layers": batch_normalization}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    default_store().clear()
    store._explained.clear()
    yield
    default_store().clear()


def images(rank: int = 4, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    shape = {2: (12, 3), 3: (4, 5, 3), 4: (4, 5, 5, 3), 5: (2, 3, 4, 4, 3)}[rank]
    return (np.random.default_rng(seed).normal(size=shape) * 3 + 2).astype(dtype)


def named(
    function: Callable[..., Any], x: Any, training: Any, scope: str = "bn", **options: Any
) -> Any:
    if function is batch_norm:
        return batch_norm(x, is_training=training, scope=scope, **options)
    return batch_normalization(x, training=training, name=scope, **options)


@pytest.mark.parametrize(("name", "expected"), [("contrib", CONTRIB), ("layers", LAYERS)])
def test_parameters_order_and_defaults_are_the_old_ones(
    name: str, expected: dict[str, object]
) -> None:
    found = {
        parameter.name: parameter.default
        for parameter in inspect.signature(FUNCTIONS[name]).parameters.values()
    }
    assert list(found) == list(expected)
    for parameter, default in expected.items():
        if isinstance(default, type) and default is not inspect.Parameter.empty:
            assert isinstance(found[parameter], default)
        else:
            assert found[parameter] == default
            assert type(found[parameter]) is type(default)


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_training_and_inference_follow_the_old_formulas(
    function: Callable[..., Any], rank: int
) -> None:
    x = images(rank)
    axes = tuple(range(rank - 1))
    wide = x.astype("float64")
    mean, variance = wide.mean(axes), wide.var(axes)
    outputs = named(function, x, True)
    np.testing.assert_allclose(outputs, (wide - mean) / np.sqrt(variance + 1e-3), 1e-5, 1e-5)
    layer = default_store()["bn"]
    decay = 0.999 if function is batch_norm else 0.99
    np.testing.assert_allclose(layer.moving_mean, (1 - decay) * mean, 1e-5)
    np.testing.assert_allclose(layer.moving_variance, decay + (1 - decay) * variance, 1e-5)
    served = (wide - layer.moving_mean.numpy()) / np.sqrt(layer.moving_variance.numpy() + 1e-3)
    np.testing.assert_allclose(named(function, x, False), served, 1e-5, 1e-5)
    assert layer.scale is (function is batch_normalization)
    assert isinstance(layer, syncbn.SyncBatchNormalization)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("kind", ["eager", "graph"])
def test_switch_may_be_a_tensor(function: Callable[..., Any], kind: str) -> None:
    x = images()
    expected = [
        named(function, x, True, "oracle").numpy(),
        named(function, x, False, "oracle").numpy(),
    ]

    def step(x: tf.Tensor, phase: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = named(function, x, phase)
            loss = tf.reduce_sum(outputs * tf.sin(outputs))
        return outputs, tape.gradient(loss, x)

    run: Any = tf.function(step) if kind == "graph" else step
    x = tf.constant(x)
    trained, gradient = run(x, tf.constant(True))
    served, _ = run(x, tf.constant(False))
    np.testing.assert_allclose(trained, expected[0], 1e-5, 1e-5)
    np.testing.assert_allclose(served, expected[1], 1e-5, 1e-5)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = named(function, x, True, "oracle")
        loss = tf.reduce_sum(outputs * tf.sin(outputs))
    np.testing.assert_allclose(gradient, tape.gradient(loss, x), 1e-4, 1e-4)
    if kind == "graph":
        assert run.experimental_get_tracing_count() <= 2  # one graph serves both


@pytest.mark.parametrize("phase", [1, np.bool_(True), tf.Variable(True), tf.constant(1)])
def test_other_forms_of_true(phase: object) -> None:
    expected = named(batch_norm, images(), True, "oracle")
    np.testing.assert_array_equal(named(batch_norm, images(), phase), expected)


def test_channels_second() -> None:
    x = images()
    expected = batch_norm(x, scope="last")
    first = np.moveaxis(x, -1, 1)
    ours = batch_norm(first, data_format="NCHW", scope="first")
    np.testing.assert_allclose(np.moveaxis(ours.numpy(), 1, -1), expected, 1e-5, 1e-5)
    same = batch_normalization(first, axis=[1], training=True, name="list")
    np.testing.assert_allclose(same, ours, 1e-5, 1e-5)


def test_every_contrib_parameter_reaches_the_layer() -> None:
    x = images(2)
    outputs = batch_norm(
        x,
        decay=0.8,
        center=True,
        scale=True,
        epsilon=0.1,
        activation_fn=tf.nn.relu,
        param_initializers={
            "beta": v1.constant_initializer(0.5),
            "gamma": v1.constant_initializer(2.0),
            "moving_mean": v1.constant_initializer(7.0),
            "moving_variance": v1.constant_initializer(9.0),
        },
        param_regularizers={"gamma": lambda w: tf.reduce_sum(w * 3.0), "beta": None},
        batch_weights=np.array([1, 0, 2, 1, 1, 0, 0, 0, 3, 1, 1, 1], "float32"),
        zero_debias_moving_mean=True,
        scope="bn",
        adjustment=lambda shape: (tf.constant(1.5), tf.constant(0.25)),
    )
    often = np.repeat(x.astype("float64"), [1, 0, 2, 1, 1, 0, 0, 0, 3, 1, 1, 1], axis=0)
    hat = (x - often.mean(0)) / np.sqrt(often.var(0) + 0.1) * 1.5 + 0.25
    np.testing.assert_allclose(outputs, np.maximum(hat * 2 + 0.5, 0), 1e-5, 1e-5)
    layer = default_store()["bn"]
    np.testing.assert_allclose(layer.moving_mean, often.mean(0), 1e-5)  # debiased
    np.testing.assert_allclose(layer.moving_variance, 9 * 0.8 + 0.2 * often.var(0), 1e-5)
    assert float(sum(default_store().losses)) == pytest.approx(18.0)


def test_every_layers_parameter_reaches_the_layer() -> None:
    options = {
        "axis": 1,
        "momentum": 0.7,
        "epsilon": 0.01,
        "center": True,
        "scale": True,
        "beta_initializer": "ones",
        "gamma_initializer": keras.initializers.Constant(3.0),
        "moving_mean_initializer": v1.random_uniform_initializer(1.0, 2.0),
        "moving_variance_initializer": lambda shape, dtype=None: tf.fill(shape, 4.0),
        "beta_regularizer": keras.regularizers.L2(0.5),
        "gamma_regularizer": lambda w: tf.reduce_sum(w),
        "beta_constraint": keras.constraints.NonNeg(),
        "gamma_constraint": lambda w: w,
        "renorm": True,
        "renorm_clipping": {"rmax": 2.0, "dmax": 1.0},
        "renorm_momentum": 0.6,
    }
    batch_normalization(images(3), training=True, name="bn", **options)
    layer = default_store()["bn"]
    for name, value in options.items():
        if not name.endswith("initializer") and not callable(value):
            assert getattr(layer, name) == value
    assert layer.beta_constraint is options["beta_constraint"]
    np.testing.assert_array_equal(layer.gamma, np.full(5, 3.0))
    np.testing.assert_array_equal(layer.beta, np.ones(5))
    assert float(sum(layer.losses)) == pytest.approx(2.5 + 15.0)
    ghost = batch_normalization(images(2), training=True, virtual_batch_size=4, name="ghost")
    halves = [
        batch_normalization(part, training=True, name=f"g{i}")
        for i, part in enumerate(np.split(images(2), 3))
    ]
    np.testing.assert_allclose(ghost, np.concatenate(halves), 1e-5, 1e-5)


def test_fused_lets_the_moving_variance_follow_the_unbiased_estimate() -> None:
    x = images()
    n = x.size / 3
    batch_norm(x, decay=0.0, fused=True, scope="fused")
    batch_norm(x, decay=0.0, scope="plain")
    fused, plain = (default_store()[s].moving_variance.numpy() for s in ("fused", "plain"))
    np.testing.assert_allclose(fused, plain * n / (n - 1), 1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_outputs_have_the_dtype_of_the_inputs(function: Callable[..., Any], dtype: str) -> None:
    outputs = named(function, tf.cast(images(), dtype), True)
    assert outputs.dtype.name == dtype
    expected = "float64" if dtype == "float64" else "float32"
    assert default_store()["bn"].moving_mean.dtype == expected


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_untrainable_statistics_still_move(function: Callable[..., Any]) -> None:
    named(function, images(), True, trainable=False)
    layer = default_store()["bn"]
    assert layer.trainable_variables == []
    assert np.all(layer.moving_mean.numpy() != 0)


def test_scopes_find_their_layers() -> None:
    x = images()
    batch_norm(x, scope="bn")
    with v1.variable_scope("tower"):
        batch_norm(x, scope="bn")
        with v1.variable_scope("deep") as scope:
            batch_normalization(x, name="bn")
    batch_norm(x, scope="bn", reuse=True)
    batch_norm(x, scope="bn", reuse=v1.AUTO_REUSE)
    batch_norm(x, scope=scope)
    assert list(default_store().named) == ["bn", "tower/bn", "tower/deep/bn", "tower/deep"]


def test_unnamed_layers_are_counted_and_explained_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        batch_norm(images())
        batch_normalization(images())
    assert list(default_store().named) == [
        "BatchNorm",
        "batch_normalization",
        "BatchNorm_1",
        "batch_normalization_1",
    ]
    assert caplog.text.count("gets new weights with every call") == 1


def test_counted_names_step_over_given_ones() -> None:
    batch_norm(images(), scope="BatchNorm")
    batch_norm(images())
    with LayerStore() as layers:
        batch_norm(images(), scope="BatchNorm")
        batch_norm(images())
        with layers:  # still the same pass
            batch_norm(images())
    assert list(default_store().named) == ["BatchNorm", "BatchNorm_1"]
    assert list(layers.named) == ["BatchNorm", "BatchNorm_1", "BatchNorm_2"]


def test_collections_are_accepted_and_explained_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        batch_norm(
            images(), scope="bn", variables_collections=["mine"], outputs_collections="outputs"
        )
    for topic in ("updates_collections", "variables_collections", "outputs_collections"):
        assert caplog.text.count(f"{topic}:") == 1
    caplog.clear()
    store._explained.clear()
    batch_norm(images(), scope="bn", updates_collections=None)
    assert "updates_collections" not in caplog.text
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_store_counts_anew_in_every_pass_and_finds_its_layers() -> None:
    layers = LayerStore()
    x = images()

    @tf.function
    def step(x: tf.Tensor, phase: tf.Tensor) -> tf.Tensor:
        with layers:
            return batch_norm(batch_norm(x, is_training=phase), is_training=phase)

    for shape in (4, 2):  # two traces
        step(tf.constant(x[:shape]), tf.constant(True))
    assert list(layers.named) == ["BatchNorm", "BatchNorm_1"]
    assert len(layers.trainable_variables) == 2
    assert default_store().named == {}
    with (
        layers,
        pytest.raises(ValueError, match=r"scope 'BatchNorm' is there already in this pass"),
    ):
        batch_norm(batch_norm(x), scope="BatchNorm")
    with layers:
        batch_norm(batch_norm(x), scope="BatchNorm", reuse=True)
    assert len(layers.named) == 2


class Network(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.norms = LayerStore()

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        with self.norms:
            return batch_norm(self.dense(inputs), is_training=bool(training), decay=0.5)


def test_store_inside_a_model_trains_saves_and_loads(tmp_path: Path) -> None:
    network = Network()
    network.compile("sgd", "mse")
    network.fit(images(2), np.ones((12, 3)), verbose=0)
    assert len(network.weights) == 5
    assert np.all(network.norms["BatchNorm"].moving_mean.numpy() != 0)
    network.save_weights(tmp_path / "network.weights.h5")
    other = Network()
    other(images(2))
    other.load_weights(tmp_path / "network.weights.h5")
    for ours, theirs in zip(other.weights, network.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_symbolic_inputs_of_keras_work() -> None:
    inputs = keras.Input((5, 5, 3))
    outputs = batch_norm(inputs, is_training=True, scope="symbolic")
    model = keras.Model(inputs, outputs)
    np.testing.assert_allclose(np.mean(model(images())), 0.0, atol=1e-5)
    assert model.layers[1] is default_store()["symbolic"]


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
        r"TensorFlow 1 graphs and sessions are gone: call .* @tf.function",
    ),
    (unnamed_in_a_function, r"without a scope inside a tf.function .*LayerStore"),
    (used_with_other_arguments, r"scope 'bn' was made with decay=0.9 and is used again with decay"),
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


def test_missing_scope_names_those_there_are() -> None:
    batch_norm(images(), scope="here")
    with pytest.raises(KeyError, match="no layer 'there'; there are: here"):
        default_store()["there"]


def behind_the_switch(rows: np.ndarray) -> dict[str, Any]:
    """Two steps of training around one of inference, in one graph; the losses are local sums."""

    @tf.function(input_signature=[tf.TensorSpec([None, 5, 5, 3]), tf.TensorSpec([], tf.bool)])
    def step(x: tf.Tensor, phase: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            h = batch_norm(x, is_training=phase, scope="one", decay=0.5)
            h = batch_normalization(tf.sin(h), training=phase, name="two", momentum=0.5)
            mean, variance = legacy.moments(h * h, [0, 1, 2])
            y = tf.nn.batch_normalization(h * h, mean, variance, None, None, 1e-3)
            loss = tf.reduce_sum(y * tf.cos(y))
        return y, tape.gradient(loss, x)

    x = tf.constant(rows)
    first, gradient = step(x, tf.constant(True))
    step(x, tf.constant(False))
    second, _ = step(x, tf.constant(True))
    report = {"first": first, "gradient": gradient, "second": second}
    report |= {scope: default_store()[scope].moving_variance for scope in ("one", "two")}
    return {key: value.numpy().tolist() for key, value in report.items()}


PROGRAM = """
import json, sys
import syncbn
from tests.syncbn.test_legacy import behind_the_switch, images

rows = images(seed=5)
rank = syncbn.init(sys.argv[1]).rank
print(json.dumps(behind_the_switch(rows[:3] if rank == 0 else rows[3:])))
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(150)
@pytest.mark.parametrize("backend", ["horovod", "mpi"])
def test_two_ranks_behind_the_switch_equal_one_process(
    mpirun: Launcher, script: Callable[[str], Path], backend: str
) -> None:
    if backend == "horovod" and find_spec("horovod") is None:
        pytest.skip("Horovod is not built: python -m launcher install-horovod")
    ranks = mpirun(
        2, script(PROGRAM), [backend], environment={"PYTHONPATH": "."}, timeout=100
    ).json()
    alone = behind_the_switch(images(seed=5))
    for key in ("first", "gradient", "second"):
        joined = np.concatenate([np.array(report[key]) for report in ranks])
        assert np.linalg.norm(joined - alone[key]) < 1e-5 * np.linalg.norm(alone[key])
    for scope in ("one", "two"):
        assert ranks[0][scope] == ranks[1][scope]
        np.testing.assert_allclose(ranks[0][scope], alone[scope], 1e-5)
