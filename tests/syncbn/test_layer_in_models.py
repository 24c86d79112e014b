"""The layer in Keras models of every form, with fit, accumulation and XLA."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import SyncBatchNormalization
from tests.syncbn import oracle
from tests.syncbn.oracle import relative_error
from tests.syncbn.worlds import mirrored

ROWS, FEATURES = 12, 5


def data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return (
        generator.normal(size=(ROWS, FEATURES)).astype("float32") + 2.0,
        generator.normal(size=(ROWS, 1)).astype("float32"),
    )


def norm(stock: bool) -> Any:
    kind = keras.layers.BatchNormalization if stock else SyncBatchNormalization
    return kind(momentum=0.9)


def hidden() -> Any:
    # Without a bias, whose gradient before a normalization is a rounding error only.
    return keras.layers.Dense(4, use_bias=False)


def sequential(stock: bool) -> keras.Model:
    layers = [hidden(), norm(stock), keras.layers.ReLU(), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((FEATURES,)), *layers])


def functional(stock: bool) -> keras.Model:
    inputs = keras.Input((FEATURES,))
    left = norm(stock)(hidden()(inputs))
    right = norm(stock)(hidden()(inputs))
    return keras.Model(inputs, keras.layers.Dense(1)(left * right))


def nested(stock: bool) -> keras.Model:
    inner = keras.Sequential([hidden(), norm(stock), keras.layers.ReLU()])
    outer = [norm(stock), keras.layers.ReLU(), inner, norm(stock), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((FEATURES,)), *outer])


class Subclassed(keras.Model):
    def __init__(self, stock: bool) -> None:
        super().__init__()
        self.first, self.shared = hidden(), norm(stock)
        self.second, self.last = hidden(), keras.layers.Dense(1)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        once = keras.ops.relu(self.shared(self.first(inputs), training=training))
        return self.last(self.shared(self.second(once), training=training))


FORMS = [sequential, functional, nested, Subclassed]


@pytest.mark.parametrize(
    ("form", "jit_compile"), [*((form, "auto") for form in FORMS), (functional, True)]
)
def test_fit_as_stock(form: Callable[[bool], keras.Model], jit_compile: Any) -> None:
    x, y = data()
    models = []
    for stock in (True, False):
        keras.utils.set_random_seed(1)
        model = form(stock)
        model.compile(keras.optimizers.SGD(0.05), loss="mse", jit_compile=jit_compile)
        model.fit(x, y, batch_size=6, epochs=2, shuffle=False, verbose=0)
        models.append(model)
    for expected, got in zip(*(model.get_weights() for model in models), strict=True):
        assert relative_error(got, expected) < 2e-5
    assert relative_error(*(model.predict(x, verbose=0) for model in models)) < 2e-5
    assert relative_error(*(model.evaluate(x, y, verbose=0) for model in models)) < 2e-5


@pytest.mark.parametrize("synchronized", [True, False])
def test_xla_may_compile_it_where_nothing_is_sent(synchronized: bool) -> None:
    layer = SyncBatchNormalization(synchronized=synchronized)
    assert layer.supports_jit
    x = np.random.default_rng(1).normal(size=(8, 3)).astype("float32")
    compiled = tf.function(lambda x: layer(x, training=True), jit_compile=True)
    assert relative_error(compiled(x), SyncBatchNormalization()(x, training=True)) < 1e-6


def test_native_operations_run_in_one_process_but_not_under_xla() -> None:
    layer = SyncBatchNormalization()

    def kinds(jit_compile: bool) -> set[str]:
        traced = tf.function(lambda x: layer(x, training=True), jit_compile=jit_compile)
        graph = traced.get_concrete_function(tf.TensorSpec([8, 3])).graph
        return {operation.type for operation in graph.get_operations()}

    native = {"SyncbnLocalSums", "SyncbnNormalize"}
    assert native <= kinds(jit_compile=False)
    assert not native & kinds(jit_compile=True)


def test_gradient_accumulation_of_keras() -> None:
    x, y = data()
    models = []
    for stock in (True, False):
        keras.utils.set_random_seed(2)
        model = sequential(stock)
        optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=2)
        model.compile(optimizer, loss="mse", jit_compile=False)
        model.fit(x, y, batch_size=3, epochs=1, shuffle=False, verbose=0)
        models.append(model)
    for expected, got in zip(*(model.get_weights() for model in models), strict=True):
        assert relative_error(got, expected) < 2e-5


def test_freezing_a_model_freezes_its_statistics() -> None:
    x, y = data()
    model = nested(stock=False)
    model.trainable = False
    before = model.get_weights()
    model.compile("sgd", "mse")
    model.fit(x, y, epochs=1, verbose=0)
    for expected, got in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("replicas", [2, 3])
def test_fit_under_a_mirrored_strategy(replicas: int) -> None:
    # The learning rate is zero, so the moving statistics depend on the global batches only.
    x, y = data()
    with mirrored(replicas).scope():
        model = keras.Sequential(
            [keras.Input((FEATURES,)), norm(stock=False), keras.layers.Dense(1)]
        )
        model.compile(keras.optimizers.SGD(0.0), loss="mse", jit_compile=False)
    model.fit(x, y, batch_size=6, epochs=1, shuffle=False, verbose=0)
    mean, variance = np.zeros(FEATURES), np.ones(FEATURES)
    for start in range(0, ROWS, 6):
        now = oracle.moments(x[start : start + 6])
        mean = oracle.move(mean, now.mean, 0.9)
        variance = oracle.move(variance, now.variance, 0.9)
    assert relative_error(model.layers[0].moving_mean.numpy(), mean) < 1e-6
    assert relative_error(model.layers[0].moving_variance.numpy(), variance) < 1e-6


def test_layers_of_equal_names_in_one_graph() -> None:
    x, _ = data()
    layers = [SyncBatchNormalization(name="bn") for _ in range(2)]
    both = tf.function(lambda x: [layer(x, training=True) for layer in layers])
    first, second = both(x)
    np.testing.assert_array_equal(first, second)


def test_a_saved_model_is_restored(tmp_path: Any) -> None:
    x, y = data()
    model = nested(stock=False)
    model.compile("sgd", "mse")
    model.fit(x, y, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
