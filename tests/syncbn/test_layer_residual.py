"""`layer(x, residual=y)`: the sum and the activation after it, in the layer."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import SyncBatchNormalization
from tests.syncbn.layer_options import OPTIONS

BACKWARD = ("SyncbnGradientSums", "SyncbnInputGradient")
SHAPE = (6, 5, 4, 3)
ACTIVATIONS = ["linear", "relu", "relu6", "leaky_relu", "gelu"]


def arguments_of(option: str) -> dict[str, Any]:
    if option == "mask":
        return {"mask": tf.constant(np.random.default_rng(1).random(SHAPE[:-1]) > 0.4)}
    return {"batch_weights": [1.0, 0.0, 2.0, 0.5, 1.0, 3.0]} if option == "weights" else {}


def step(
    activation: str, dtype: str, option: str, inside: bool, graph: bool = False
) -> list[np.ndarray]:
    """Outputs, and the gradients of x, the residual, γ and β; the sum is in or after the layer."""
    generator = np.random.default_rng(3)
    x, residual, upstream = (
        tf.constant(generator.normal(mean, 3.0, size=SHAPE), dtype) for mean in (2.0, 0.0, 0.0)
    )
    layer = SyncBatchNormalization(
        activation=activation if inside else None, dtype=dtype, **OPTIONS[option]
    )
    layer.build(SHAPE)
    channels = layer.moving_mean.shape[0]
    layer.gamma.assign(generator.uniform(2.0, 6.0, channels))
    layer.beta.assign(generator.normal(size=channels))
    call = arguments_of(option)

    def run(x: tf.Tensor, residual: tf.Tensor, upstream: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([x, residual])
            if inside:
                y = layer(x, residual=residual, training=True, **call)
            else:
                y = keras.activations.get(activation)(layer(x, training=True, **call) + residual)
        sources = [x, residual, layer.gamma.value, layer.beta.value]
        return [y, *tape.gradient(y, sources, output_gradients=upstream)]

    results = (tf.function(run) if graph else run)(x, residual, upstream)
    return [np.asarray(v, "float64") for v in (*results, layer.moving_mean, layer.moving_variance)]


@pytest.mark.parametrize("native", ["1", "0"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_sum_behind_the_layer(
    activation: str, dtype: str, option: str, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCBN_NATIVE", native)
    # The slope of TensorFlow's leaky ReLU is float32 for all dtypes.
    rounded = activation == "leaky_relu" and dtype == "float64"
    tolerance = 2e-6 if dtype == "float32" else 2e-8 if rounded else 1e-12
    for graph in (False, True):
        ours = step(activation, dtype, option, inside=True, graph=graph)
        expected = step(activation, dtype, option, inside=False, graph=graph)
        for a, b in zip(ours, expected, strict=True):
            assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("activation", ["linear", "relu", "leaky_relu"])
def test_half_precision_is_rounded_once(activation: str, dtype: str) -> None:
    generator = np.random.default_rng(3)
    x, residual = (tf.constant(generator.normal(size=SHAPE), dtype) for _ in range(2))
    layers = [
        SyncBatchNormalization(activation=activation, dtype=d)
        for d in (f"mixed_{dtype}", "float32")
    ]
    for layer in layers:
        layer.build(SHAPE)
        layer.gamma.assign([2.0, 3.3, 0.7])
        layer.beta.assign([-0.3, 0.2, 0.1])
    half = layers[0](x, residual=residual, training=True)
    exact = layers[1](tf.cast(x, "float32"), residual=residual, training=True)
    assert half.dtype == dtype
    np.testing.assert_array_equal(half, tf.cast(exact, dtype))


def test_the_gradient_without_an_activation_is_that_of_the_outputs() -> None:
    layer = SyncBatchNormalization()
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 3)), tf.float32)
    upstream = tf.constant(np.random.default_rng(1).normal(size=(4, 3)), tf.float32)
    residual = tf.Variable(tf.zeros((4, 3)))
    with tf.GradientTape() as tape:
        y = layer(x, residual=residual, training=True)
    (gradient,) = tape.gradient(y, [residual], output_gradients=upstream)
    np.testing.assert_array_equal(gradient, upstream)


def test_the_gradient_of_the_outputs_keeps_its_value() -> None:
    """The kernel writes the gradient of the residual in its place only if nothing else uses it."""
    layer = SyncBatchNormalization(activation="relu")
    generator = np.random.default_rng(0)
    x, residual, upstream = (
        tf.constant(generator.normal(size=(40, 3)), tf.float32) for _ in range(3)
    )
    before = upstream.numpy()

    @tf.function
    def run(upstream: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([x, residual])
            y = layer(x, residual=residual, training=True)
        scaled = upstream * 2.0
        return [*tape.gradient(y, [x, residual], output_gradients=scaled), scaled, y]

    _, of_residual, scaled, y = (t.numpy() for t in run(upstream))
    np.testing.assert_array_equal(scaled, 2.0 * before)
    np.testing.assert_array_equal(of_residual, np.where(y > 0, scaled, 0.0))
    np.testing.assert_array_equal(upstream, before)


@pytest.mark.parametrize("training", [False, None])
@pytest.mark.parametrize("option", ["plain", "channels first"])
def test_inference(option: str, training: bool | None) -> None:
    layer = SyncBatchNormalization(activation="relu", **OPTIONS[option])
    generator = np.random.default_rng(0)
    x, residual = (generator.normal(size=SHAPE).astype("float32") for _ in range(2))
    layer(x, residual=residual, training=True)
    alone = SyncBatchNormalization(**OPTIONS[option])
    alone.build(SHAPE)
    alone.set_weights(layer.get_weights())
    expected = np.maximum(alone(x, training=training).numpy() + residual, 0.0)
    np.testing.assert_array_equal(layer(x, residual=residual, training=training), expected)
    layer.trainable = False
    np.testing.assert_array_equal(layer(x, residual=residual, training=True), expected)


def functional() -> keras.Model:
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(3, 3, padding="same")(inputs)
    normalization = SyncBatchNormalization(activation="relu", name="normalization")
    return keras.Model(inputs, keras.layers.Conv2D(2, 1)(normalization(x, residual=inputs)))


class Subclassed(keras.Model):
    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inside = inside
        self.dense = keras.layers.Dense(3, kernel_initializer="identity")
        self.normalization = SyncBatchNormalization(activation="relu" if inside else None)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        hidden = self.dense(inputs)
        if self.inside:
            return self.normalization(hidden, residual=inputs, training=training)
        return keras.ops.relu(self.normalization(hidden, training=training) + inputs)


def test_functional_models_are_saved_loaded_and_trained(tmp_path: Path) -> None:
    model = functional()
    assert model.layers[2].name == "normalization"
    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=(8, 5, 4, n)).astype("float32") for n in (3, 2))
    model.compile("sgd", "mse")
    model.fit(x, y, batch_size=3, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    copy = keras.Model.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy.predict(x, verbose=0), model.predict(x, verbose=0))
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.call, [tf.TensorSpec((None, 5, 4, 3))])
    archive.write_out(str(tmp_path / "served"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(x), model.predict(x, verbose=0), 1e-5, 1e-6)


def test_subclassed_models_train() -> None:
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    weights: list[np.ndarray] = []
    for inside in (True, False):
        model = Subclassed(inside)
        model.compile("sgd", "mse")
        model.fit(x, np.maximum(x, 0), epochs=3, batch_size=4, shuffle=False, verbose=0)
        weights.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    np.testing.assert_allclose(weights[0], weights[1], 1e-5, 1e-6)


def test_one_layer_with_and_without_residual() -> None:
    layer = SyncBatchNormalization(activation="relu")
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    plain = layer(x, training=True)
    np.testing.assert_array_equal(layer(x, residual=np.zeros_like(x), training=True), plain)


def test_the_mask_of_the_sum_is_that_of_add() -> None:
    generator = np.random.default_rng(0)
    inputs, other = (generator.normal(size=(2, 5, 3)).astype("float32") for _ in range(2))
    inputs[0, 3:], other[0, 2:], other[1, 4:] = 0.0, 0.0, 0.0
    x, residual = (keras.layers.Masking()(v) for v in (inputs, other))
    layer = SyncBatchNormalization()
    y = layer(x, residual=residual, training=True)
    expected = keras.layers.Add()([x, residual])._keras_mask
    np.testing.assert_array_equal(y._keras_mask, expected)
    assert getattr(layer(x, residual=other, training=True), "_keras_mask", None) is None
    by_argument = SyncBatchNormalization()(inputs, mask=x._keras_mask, training=True)
    np.testing.assert_array_equal(y, by_argument + other)


def test_the_residual_is_cast_like_the_inputs() -> None:
    layer = SyncBatchNormalization(dtype="mixed_float16", activation="relu")
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    outputs = layer(x, residual=x, training=True)
    assert outputs.dtype == tf.float16
    assert layer(x, residual=tf.cast(x, tf.float16)).dtype == tf.float16
    wide = SyncBatchNormalization(dtype="mixed_float16", autocast=False)
    assert wide(x, residual=x, training=True).dtype == tf.float16


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("residual", "message"),
    [
        (np.ones((6, 4, 2), "float32"), r"residual of shape \(6, 4, 2\) .* \(6, 4, 3\)"),
        (np.ones((6, 1, 3), "float32"), r"residual of shape \(6, 1, 3\)"),
        (np.ones((4, 3), "float32"), r"residual of shape \(4, 3\)"),
        (
            np.ones((6, 4, 3), "int32"),
            r"dtype int32, inputs of shape .* and dtype float32",
        ),
    ],
)
def test_a_residual_that_does_not_fit(residual: np.ndarray, message: str, training: bool) -> None:
    x = np.ones((6, 4, 3), "float32")
    with pytest.raises(ValueError, match="residual must have the shape and dtype .*" + message):
        SyncBatchNormalization()(x, residual=residual, training=training)


def test_a_symbolic_residual_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"residual of shape \(None, 4\)"):
        SyncBatchNormalization()(keras.Input((3,)), residual=keras.Input((4,)))
    layer = SyncBatchNormalization(autocast=False)
    with pytest.raises(ValueError, match="dtype float64"):
        layer(keras.Input((3,)), residual=keras.Input((3,), dtype="float64"))


@pytest.mark.parametrize("native", ["1", "0"])
@pytest.mark.parametrize("training", [True, False])
def test_shapes_that_differ_at_run_time(
    training: bool, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCBN_NATIVE", native)
    layer = SyncBatchNormalization(activation="relu")
    unknown = [tf.TensorSpec([None, None, 3])] * 2
    step = tf.function(lambda x, r: layer(x, residual=r, training=training), unknown)
    x = tf.ones((2, 4, 3))
    assert step(x, x).shape == x.shape
    assert step(x[:0], x[:0]).shape == (0, 4, 3)
    for other in (x[:1], x[:, :1], tf.ones((2, 5, 3))):
        with pytest.raises(tf.errors.InvalidArgumentError, match="residual must have the shape of"):
            step(x, other)


def test_nothing_more_is_kept_than_inputs_and_residual() -> None:
    """The gradient reads tensors of the size of the inputs from x and the residual only."""
    layer = SyncBatchNormalization(activation="relu")
    layer.build((None, 3))

    @tf.function
    def run(x: tf.Tensor, residual: tf.Tensor, dy: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([x, residual])
            y = layer(x, residual=residual, training=True)
        return tape.gradient(y, [x, residual], output_gradients=dy)

    example = tf.ones((4, 3))
    graph = run.get_concrete_function(example, example, example).graph
    backward = [o for o in graph.get_operations() if o.type in BACKWARD]
    assert len(backward) == 2
    large = {t.op.type for o in backward for t in o.inputs if t.shape == (4, 3)}
    assert large == {"Placeholder", "SyncbnGradientSums"}
