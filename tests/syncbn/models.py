"""Small models of every kind for the tests of model surgery, with non-initial weights."""

import keras
import numpy as np

L = keras.layers


def shake(model: keras.Model, seed: int = 0) -> keras.Model:
    """Assigns reproducible different values to all weights, so that lost ones are detected."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        noise = random.normal(size=variable.shape)
        if len(variable.shape) > 1:
            variable.assign(noise / np.sqrt(np.prod(variable.shape[:-1])))
        elif "variance" in variable.name or "stddev" in variable.name:
            variable.assign(np.abs(1.0 + 0.1 * noise) + 0.1)
        else:
            variable.assign(0.1 * noise + (variable.name == "gamma"))
    return model


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            L.Conv2D(4, 3),
            L.BatchNormalization(gamma_regularizer="l2", momentum=0.8),
            L.ReLU(),
            L.GlobalAveragePooling2D(),
            L.Dense(2),
        ],
        name="stack",
    )


def branched() -> keras.Model:
    """Two inputs, two outputs, a normalization used twice, one inside a shared nested model."""
    first, second = keras.Input((6, 6, 3), name="first"), keras.Input((6, 6, 3), name="second")
    inner_input = keras.Input((4, 4, 4))
    inner = keras.Model(
        inner_input,
        keras.Sequential([L.Conv2D(4, 1), L.BatchNormalization(name="deep")], name="innermost")(
            L.BatchNormalization(name="inside", scale=False)(inner_input)
        ),
        name="inner",
    )
    shared = L.BatchNormalization(name="shared", epsilon=0.02)
    convolution = L.Conv2D(4, 3, name="convolution")
    left, right = shared(convolution(first)), shared(L.Conv2D(4, 3, name="other")(second))
    frozen = L.BatchNormalization(name="frozen", trainable=False)
    joined = L.Add()([inner(left), inner(right) * 0.5])
    return keras.Model(
        {"first": first, "second": second},
        {"pooled": L.GlobalMaxPooling2D()(frozen(joined)), "map": left},
        name="branched",
    )


@keras.saving.register_keras_serializable(package="tests")
class Block(keras.layers.Layer):
    """A custom layer with sublayers, one created in `build`."""

    def __init__(self, units: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.dense = L.Dense(units)
        self.normalization = L.BatchNormalization()

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.dense.build(input_shape)
        self.normalization.build((*input_shape[:-1], self.units))
        self.late = L.BatchNormalization(name="late")
        self.late.build((*input_shape[:-1], self.units))

    def call(self, inputs: object, training: bool | None = None) -> object:
        hidden = self.normalization(self.dense(inputs), training=training)
        return self.late(keras.ops.relu(hidden), training=training)

    def get_config(self) -> dict[str, object]:
        return {**super().get_config(), "units": self.units}


class Subclassed(keras.Model):
    """Normalizations in attributes, lists, tuples, dicts and nested models; one of them twice."""

    def __init__(self) -> None:
        super().__init__(name="subclassed")
        self.single = L.BatchNormalization(name="single")
        self.listed = [L.Dense(4, name="d0"), L.BatchNormalization(name="listed")]
        self.paired = (L.Dense(4, name="d1"), L.BatchNormalization(name="paired"))
        self.named = {"one": L.BatchNormalization(name="named"), "deeper": [self.single]}
        self.nested = keras.Sequential([keras.Input((4,)), L.Dense(4), L.BatchNormalization()])
        graph_input = keras.Input((4,))
        self.graph = keras.Model(graph_input, L.BatchNormalization(name="g")(graph_input))
        self.block = Block(4)

    def call(self, inputs: object, training: bool | None = None) -> object:
        x = self.single(inputs, training=training)
        for layer in self.listed:
            x = layer(x)
        for layer in self.paired:
            x = layer(x)
        x = self.named["one"](x, training=training)
        x = self.named["deeper"][0](x, training=training)
        x = self.block(self.graph(self.nested(x, training=training), training=training))
        return keras.ops.tanh(x)


class FunctionalSubclass(keras.Model):
    """A functional model whose class has a custom `__init__` and step."""

    def __init__(self, width: int) -> None:
        inputs = keras.Input((4,))
        normalization = L.BatchNormalization(name="normalization")
        super().__init__(inputs, L.Dense(1)(normalization(L.Dense(width)(inputs))))
        self.normalization = normalization
        self.steps = 0

    def train_step(self, data: object) -> dict[str, object]:
        self.steps += 1
        return super().train_step(data)
