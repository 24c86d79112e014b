"""Layers in place of those that a fused batch normalization computes; they pass tensors on.

They keep the graph as it was, so that the layers with weights stay in the same order and saved
weights fit models before and after fusing. They store the configuration of what they replaced.
"""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="syncbn")
class FusedInput(keras.layers.Layer):
    """The identity, in place of a batch normalization that is now after a sum.

    Args:
        **kwargs: Base layer arguments.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "autocast": False})
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        return inputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype), inputs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config()}


@keras.saving.register_keras_serializable(package="syncbn")
class FusedActivation(FusedInput):
    """The identity, in place of an activation that the batch normalization before it computes.

    Args:
        original: The activation layer or operation, serialized.
        **kwargs: Base layer arguments.
    """

    def __init__(self, original: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.original = original

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "original": self.original}


@keras.saving.register_keras_serializable(package="syncbn")
class FusedSum(FusedInput):
    """Passes on the two terms of a sum that the batch normalization after it computes.

    Args:
        position: Index of the term that the batch normalization normalizes.
        original: The layer or operation that added the two, serialized.
        activation: The activation after it, serialized.
        **kwargs: Base layer arguments.

    Call arguments:
        inputs: A list of the two terms, which is returned.
    """

    def __init__(
        self, position: int, original: dict[str, Any], activation: dict[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.position = position
        self.original = original
        self.activation = activation

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "position": self.position,
            "original": self.original,
            "activation": self.activation,
        }
