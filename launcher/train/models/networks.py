"""Built-in networks, with a normalization layer wherever the paper has one."""

from collections.abc import Callable
from typing import Any

import keras

import syncbn

Norm = Callable[[str], keras.layers.Layer]


def normalization(norm: str, momentum: float) -> Norm:
    """Returns a function from a name to the normalization layer that `--norm` selects."""
    if norm == "none":
        return lambda name: keras.layers.Identity(name=name)
    return lambda name: syncbn.SyncBatchNormalization(
        momentum=momentum, synchronized=norm == "sync", name=name
    )


def _dnn(x: Any, norm: Norm) -> Any:
    """Two hidden ELU layers with He initialization: the classic MLP for MNIST."""
    x = keras.layers.Flatten()(x)
    for index, units in enumerate((300, 100), start=1):
        x = keras.layers.Dense(
            units, kernel_initializer="he_normal", use_bias=False, name=f"hidden{index}"
        )(x)
        x = norm(f"hidden{index}_bn")(x)
        x = keras.layers.ELU()(x)
    return x


def _cnn(x: Any, norm: Norm) -> Any:
    """Three convolutions, each followed by a normalization."""
    for index, (filters, stride) in enumerate(((32, 1), (64, 2), (64, 1)), start=1):
        x = _convolution(x, filters, 3, stride, f"conv{index}")
        x = norm(f"conv{index}_bn")(x)
        x = keras.layers.ReLU()(x)
    return keras.layers.Flatten()(x)


def _resnet(blocks: tuple[int, ...], bottleneck: bool) -> Callable[[Any, Norm], Any]:
    """ResNet for small images (He et al., 2016, section 4.2): a 3×3 stem without pooling.

    https://arxiv.org/abs/1512.03385
    """

    def body(x: Any, norm: Norm) -> Any:
        x = keras.layers.ReLU()(norm("stem_bn")(_convolution(x, 64, 3, 1, "stem")))
        for stage, repeats in enumerate(blocks):
            for repeat in range(repeats):
                stride = 2 if stage > 0 and repeat == 0 else 1
                block = _bottleneck_block if bottleneck else _basic_block
                x = block(x, 64 * 2**stage, stride, norm, f"stage{stage + 1}_block{repeat + 1}")
        return keras.layers.GlobalAveragePooling2D()(x)

    return body


def _basic_block(x: Any, filters: int, stride: int, norm: Norm, name: str) -> Any:
    y = norm(f"{name}_bn1")(_convolution(x, filters, 3, stride, f"{name}_conv1"))
    y = keras.layers.ReLU()(y)
    y = norm(f"{name}_bn2")(_convolution(y, filters, 3, 1, f"{name}_conv2"))
    return _add_shortcut(x, y, filters, stride, norm, name)


def _bottleneck_block(x: Any, filters: int, stride: int, norm: Norm, name: str) -> Any:
    y = norm(f"{name}_bn1")(_convolution(x, filters, 1, 1, f"{name}_conv1"))
    y = keras.layers.ReLU()(y)
    y = norm(f"{name}_bn2")(_convolution(y, filters, 3, stride, f"{name}_conv2"))
    y = keras.layers.ReLU()(y)
    y = norm(f"{name}_bn3")(_convolution(y, 4 * filters, 1, 1, f"{name}_conv3"))
    return _add_shortcut(x, y, 4 * filters, stride, norm, name)


def _add_shortcut(x: Any, y: Any, filters: int, stride: int, norm: Norm, name: str) -> Any:
    """Adds the block's input to its output, projected where the shape changes."""
    if stride != 1 or x.shape[-1] != filters:
        x = norm(f"{name}_bn0")(_convolution(x, filters, 1, stride, f"{name}_conv0"))
    return keras.layers.ReLU()(keras.layers.Add()([x, y]))


def _convolution(x: Any, filters: int, kernel: int, stride: int, name: str) -> Any:
    # Without bias: the normalization that follows subtracts it.
    return keras.layers.Conv2D(
        filters,
        kernel,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


BODIES: dict[str, Callable[[Any, Norm], Any]] = {
    "dnn": _dnn,
    "cnn": _cnn,
    "resnet18": _resnet((2, 2, 2, 2), bottleneck=False),
    "resnet34": _resnet((3, 4, 6, 3), bottleneck=False),
    "resnet50": _resnet((3, 4, 6, 3), bottleneck=True),
}
