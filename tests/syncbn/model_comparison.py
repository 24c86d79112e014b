"""Comparisons of two models: their normalizations, weights and outputs."""

import keras
import numpy as np


def kinds(model: keras.Model) -> list[type]:
    return [
        type(layer)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


def count(model: keras.Model) -> int:
    return len(kinds(model))


def values(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.weights]


def bits(model: keras.Model) -> list[str]:
    return [variable.numpy().tobytes().hex() for variable in model.weights]


def assert_bitwise(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    assert [a.tobytes() for a in left] == [b.tobytes() for b in right]


def example(model: keras.Model, rows: int = 4) -> object:
    random = np.random.default_rng(3)
    make = lambda t: random.normal(size=(rows, *t.shape[1:])).astype("float32")  # noqa: E731
    source = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(make, source)


def assert_same_outputs(left: keras.Model, right: keras.Model, inputs: object) -> None:
    ours, theirs = left(inputs, training=False), right(inputs, training=False)
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), ours, theirs
    )


def relative_error(folded: keras.Model, model: keras.Model, *shapes: tuple[int, ...]) -> float:
    random = np.random.default_rng(5)
    inputs = [random.normal(size=shape).astype("float32") for shape in shapes]
    given = inputs if len(inputs) > 1 else inputs[0]
    ours, theirs = (
        np.concatenate([np.ravel(t) for t in keras.tree.flatten(m(given, training=False))])
        for m in (folded, model)
    )
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
