"""`convert_sync_batchnorm(model, fuse=True)`: same results, weights and files; and its reversal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from syncbn import (
    SyncBatchNormalization,
    convert_sync_batchnorm,
    fold_batchnorm,
    recompute_statistics,
    revert_sync_batchnorm,
)
from tests.syncbn.model_comparison import assert_bitwise, example, kinds, relative_error, values
from tests.syncbn.models import Subclassed, sequential, shake

L = keras.layers
ACTIVATIONS: dict[str, Callable[[], Any]] = {
    "ReLU": L.ReLU,
    "ReLU6": lambda: L.ReLU(6.0),
    "ReLU with a slope": lambda: L.ReLU(negative_slope=0.2),
    "LeakyReLU": lambda: L.LeakyReLU(0.1),
    "Activation relu": lambda: L.Activation("relu"),
    "Activation relu6": lambda: L.Activation("relu6"),
    "Activation leaky_relu": lambda: L.Activation("leaky_relu"),
    "relu": lambda: keras.ops.relu,
    "relu6": lambda: keras.ops.relu6,
    "leaky_relu": lambda: lambda x: keras.ops.leaky_relu(x, 0.3),
}
SUMS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda x, shortcut: L.Add()([x, shortcut]),
    "Add, swapped": lambda x, shortcut: L.Add()([shortcut, x]),
    "+": lambda x, shortcut: x + shortcut,
    "+, swapped": lambda x, shortcut: shortcut + x,
}


def normalized(x: Any, filters: int, size: int = 1, **options: Any) -> Any:
    return L.BatchNormalization(**options)(L.Conv2D(filters, size, padding="same")(x))


def residual_block(
    add: Callable[[Any, Any], Any], activation: Callable[[], Any], projected: bool = True
) -> keras.Model:
    """Two convolutions beside a shortcut, which has a normalization of its own if `projected`."""
    inputs = keras.Input((5, 6, 4))
    x = activation()(normalized(inputs, 4, 3))
    x = normalized(x, 4, 3)
    shortcut = normalized(inputs, 4) if projected else inputs
    x = activation()(add(x, shortcut))
    return shake(keras.Model(inputs, normalized(x, 3), name="block"))


def steps(model: keras.Model) -> list[np.ndarray]:
    """Outputs, all gradients and all weights of two training steps."""
    found: list[np.ndarray] = []
    inputs = keras.tree.map_structure(tf.constant, example(model))
    for _ in range(2):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = keras.tree.flatten(model(inputs, training=True))
            loss = tf.add_n([tf.reduce_sum(tf.cast(y, "float32") ** 2) for y in outputs])
        sources = [*keras.tree.flatten(inputs), *(v.value for v in model.trainable_variables)]
        found += [np.asarray(t) for t in (*outputs, *tape.gradient(loss, sources))]
    return found + values(model)


def fused_count(model: keras.Model) -> tuple[int, int]:
    """The numbers of activations and of sums that batch normalizations compute."""
    names = [type(layer).__name__ for layer in model._flatten_layers()]
    return names.count("FusedActivation"), names.count("FusedSum")


def check(model: keras.Model, activations: int, sums: int) -> keras.Model:
    """Fuses, and compares with the conversion alone, bit for bit, and with the original."""
    before = values(model)
    plain = convert_sync_batchnorm(model)
    fused = convert_sync_batchnorm(model, fuse=True)
    assert fused_count(fused) == (activations, sums)
    assert [v.path for v in fused.weights] == [v.path for v in model.weights]
    assert_bitwise(values(fused), before)
    given = example(model)
    assert_bitwise(*(keras.tree.flatten(m.predict(given, verbose=0)) for m in (fused, plain)))
    assert_bitwise(steps(fused), steps(plain))
    assert_bitwise(values(model), before)
    reverted = revert_sync_batchnorm(fused)
    assert [layer.name for layer in reverted.layers] == [layer.name for layer in model.layers]
    assert [type(layer) for layer in reverted.layers] == [type(layer) for layer in model.layers]
    return fused


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_rectifier_is_fused(activation: str) -> None:
    check(residual_block(SUMS["Add"], ACTIVATIONS[activation]), 1, 1)


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("add", SUMS)
def test_every_sum_is_fused(add: str, projected: bool) -> None:
    check(residual_block(SUMS[add], L.ReLU, projected), 1, 1)


def test_operations_of_tensorflow_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_NATIVE", "0")
    check(residual_block(SUMS["Add"], L.ReLU), 1, 1)


def test_resnet50_is_fused_as_a_whole() -> None:
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=3)
    fused = convert_sync_batchnorm(shake(model), fuse=True)
    assert fused_count(fused) == (33, 16)
    assert [v.path for v in fused.weights] == [v.path for v in model.weights]
    plain = convert_sync_batchnorm(model)
    given = example(model, 2)
    assert_bitwise(*([m(given, training=True).numpy()] for m in (fused, plain)))
    assert_bitwise(values(fused), values(plain))


def test_sequential_and_nested_models() -> None:
    check(shake(sequential()), 1, 0)
    inputs = keras.Input((5, 6, 4))
    inner = residual_block(SUMS["Add"], L.ReLU)
    part = keras.Sequential([keras.Input((5, 6, 3)), L.BatchNormalization(), L.ReLU()])
    part.trainable = False
    inner.layers[1].trainable = False
    model = keras.Model(inputs, part(inner(inputs)), name="outer")
    fused = check(shake(model), 2, 1)
    flags = [[la.trainable for la in m.layers] for m in (model.layers[1], fused.layers[1])]
    assert flags[0][:2] == flags[1][:2]
    assert not fused.layers[2].trainable
    assert fused.get_layer("block").get_layer(inner.layers[3].name).output is not None


def shared_normalization(x: Any) -> Any:
    layer = L.BatchNormalization()
    return L.ReLU()(layer(x)) + layer(L.ReLU()(x))


def shared_activation(x: Any) -> Any:
    layer = L.ReLU()
    return layer(L.Dense(4)(layer(L.BatchNormalization()(x))))


def used_elsewhere(x: Any) -> Any:
    x = L.BatchNormalization()(x)
    return L.ReLU()(x) * x


def sum_of_three(x: Any) -> Any:
    return L.ReLU()(L.Add()([L.BatchNormalization()(x), x, x]))


def sum_used_elsewhere(x: Any) -> Any:
    total = L.Add()([L.BatchNormalization()(x), x])
    return L.ReLU()(total) * total


def sum_with_itself(x: Any) -> Any:
    x = L.BatchNormalization()(x)
    return L.ReLU()(L.Add()([x, x]))


def broadcast_sum(x: Any) -> Any:
    return L.ReLU()(L.Add()([L.BatchNormalization()(x), keras.ops.mean(x, 1, keepdims=True)]))


def sum_with_a_constant(x: Any) -> Any:
    return L.ReLU()(L.BatchNormalization()(x) + 1.0)


def other_activation(x: Any) -> Any:
    return L.ReLU(max_value=3.0)(L.BatchNormalization()(L.ReLU(threshold=1.0)(x)))


def other_dtype(x: Any) -> Any:
    return L.ReLU(dtype="float16")(L.BatchNormalization()(x))


def regularized(x: Any) -> Any:
    return L.ReLU(activity_regularizer="l2")(L.BatchNormalization()(x))


@pytest.mark.parametrize(
    "body",
    [
        *(shared_normalization, shared_activation, used_elsewhere, sum_of_three),
        *(sum_used_elsewhere, sum_with_itself, broadcast_sum, sum_with_a_constant),
        *(other_activation, other_dtype, regularized),
    ],
)
def test_what_must_not_be_fused(body: Callable[[Any], Any]) -> None:
    inputs = keras.Input((3, 4))
    check(shake(keras.Model(inputs, body(inputs))), 0, 0)


def test_an_output_of_the_model_is_not_fused() -> None:
    inputs = keras.Input((3,))
    normal = L.BatchNormalization()(inputs)
    check(shake(keras.Model(inputs, [normal, L.ReLU()(normal)])), 0, 0)


@pytest.mark.parametrize(("dense_first", "sums"), [(True, 1), (False, 0)])
def test_a_sum_is_not_fused_if_the_order_of_weights_would_change(
    dense_first: bool, sums: int
) -> None:
    inputs = keras.Input((3, 4))
    terms = [L.Dense(4)(inputs), L.BatchNormalization()(inputs)]
    total = L.Add()(terms if dense_first else terms[::-1])
    check(shake(keras.Model(inputs, L.ReLU()(total))), 0, sums)


def test_subclassed_models_are_not_fused() -> None:
    model = Subclassed()
    model(np.ones((2, 4), "float32"))
    converted = convert_sync_batchnorm(model, fuse=True)
    assert converted is model
    assert fused_count(model) == (0, 0)
    assert set(kinds(model)) == {SyncBatchNormalization}


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_rounded_once(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        model = residual_block(SUMS["Add"], L.ReLU)
    finally:
        keras.config.set_dtype_policy("float32")
    given = example(model)
    fused = convert_sync_batchnorm(model, fuse=True)
    assert fused_count(fused) == (1, 1)
    ours, theirs = (np.asarray(m(given), "float64") for m in (fused, model))
    unit = 2.0**-10 if policy == "mixed_float16" else 2.0**-7
    assert np.abs(ours - theirs).max() <= 4 * unit * np.abs(theirs).max()


def test_files_are_interchangeable(tmp_path: Path) -> None:
    model = residual_block(SUMS["Add, swapped"], ACTIVATIONS["LeakyReLU"])
    fused = convert_sync_batchnorm(model, fuse=True)
    file = tmp_path / "a.weights.h5"
    model.save_weights(file)
    shake(fused, 1).load_weights(file)
    assert_bitwise(values(fused), values(model))
    shake(fused, 2).save_weights(file)
    model.load_weights(file)
    assert_bitwise(values(fused), values(model))
    given = example(model)
    fused.save(tmp_path / "a.keras")
    loaded = keras.saving.load_model(tmp_path / "a.keras")
    assert fused_count(loaded) == (1, 1)
    assert_bitwise([loaded.predict(given, verbose=0)], [fused.predict(given, verbose=0)])
    reverted = revert_sync_batchnorm(loaded)
    assert [type(layer) for layer in reverted.layers] == [type(layer) for layer in model.layers]
    assert_bitwise(steps(convert_sync_batchnorm(reverted)), steps(convert_sync_batchnorm(model)))


def test_converting_again_changes_nothing() -> None:
    model = residual_block(SUMS["Add"], L.ReLU)
    once = convert_sync_batchnorm(model, fuse=True)
    for fuse in (True, False):
        again = convert_sync_batchnorm(once, fuse=fuse, momentum=0.5)
        assert fused_count(again) == (1, 1)
        assert again.layers[2].momentum == 0.5
        assert_bitwise(values(again), values(once))


def test_a_compiled_model_trains() -> None:
    model = residual_block(SUMS["+"], L.ReLU)
    model.compile("sgd", "mse")
    x, y = example(model, 8), np.ones((8, 5, 6, 3), "float32")
    fused, plain = (convert_sync_batchnorm(model, fuse=fuse) for fuse in (True, False))
    for trained in (fused, plain):
        trained.fit(x, y, epochs=2, batch_size=4, shuffle=False, verbose=0)
    assert_bitwise(values(fused), values(plain))


def test_other_functions_on_a_fused_model() -> None:
    model = residual_block(SUMS["Add"], L.ReLU)
    fused = convert_sync_batchnorm(model, fuse=True)
    folded = fold_batchnorm(fused)
    assert kinds(folded) == kinds(fold_batchnorm(model))
    assert relative_error(folded, model, (4, 5, 6, 4)) < 2e-6
    data = [example(model, 6)]
    for other in (model, fused):
        recompute_statistics(other, data)
    np.testing.assert_allclose(
        np.concatenate([v.ravel() for v in values(fused)]),
        np.concatenate([v.ravel() for v in values(model)]),
        1e-6,
    )


def test_a_residual_of_hand_cannot_be_reverted_or_folded_away() -> None:
    inputs = keras.Input((4,))
    dense = L.Dense(4)(inputs)
    outputs = SyncBatchNormalization(name="bn")(inputs, residual=dense)
    model = shake(keras.Model(inputs, outputs))
    with pytest.raises(ValueError, match=r"adds no residual: .* 'bn' called with residual"):
        revert_sync_batchnorm(model)
    assert kinds(fold_batchnorm(model)) == [SyncBatchNormalization]
    assert relative_error(fold_batchnorm(model), model, (5, 4)) == 0.0
