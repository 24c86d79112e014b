"""SyncBatchNormalization, the Keras layer."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from syncbn import arguments, consistency, ghost, moving_statistics, normalize, residuals
from syncbn.communicators import Communicator, resolve
from syncbn.communicators.contribution import contributing
from syncbn.errors import SyncbnError
from syncbn.moments import Layout, compute_dtype
from syncbn.moving_statistics import MovingStatistics, RenormStatistics
from syncbn.norm_context import NormContext, rectifier_of

Adjustment = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@keras.saving.register_keras_serializable(package="syncbn")
class SyncBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization with statistics over the samples of all ranks.

    A `keras.layers.BatchNormalization` (same weights, names, configuration, defaults), except that
    in training mean and variance are those of the global batch. Ranks are weighted by their number
    of samples, so shards may be uneven or empty. One all-reduce forward and one backward send
    float64 sums.

    Training (`training=True` and `trainable`): `y = γ·(x − mean)/√(variance + ε) + β`, and the
    moving statistics are updated, bitwise equal on all ranks. Inference uses the moving statistics
    and does not communicate.

    Args:
        axis: Integer, the channel axis.
        momentum: Momentum of the moving statistics.
        epsilon: Added to the variance.
        center: Whether to add `beta`.
        scale: Whether to multiply by `gamma`.
        beta_initializer, gamma_initializer: Initializers of `beta` and `gamma`.
        moving_mean_initializer, moving_variance_initializer: Of the moving statistics.
        beta_regularizer, gamma_regularizer: Optional regularizers.
        beta_constraint, gamma_constraint: Optional constraints.
        renorm: Batch renormalization (Ioffe, 2017), with synchronized statistics.
        renorm_clipping: Dictionary with optional keys `rmax`, `rmin`, `dmax`.
        renorm_momentum: Momentum of the renorm statistics.
        synchronized: `False` normalizes each rank by itself.
        communicator: A `syncbn.Communicator` or the name of a backend; `"auto"` is the current one
            (`syncbn.init`), or that of the replica context inside `strategy.run`.
        group_size: Synchronize blocks of this many consecutive ranks only (for example those of a
            host); must divide the number of ranks. None: all ranks.
        virtual_batch_size: Ghost batch normalization (Hoffer et al., 2017): normalize each block of
            this many samples of a rank by its own statistics; must divide the rank's batch. The
            moving statistics use the average over all blocks of all ranks.
        adjustment: Callable from the shape of the inputs (an int32 tensor) to `(scale, bias)`,
            applied to the normalized values before `gamma` and `beta`, in training only.
        zero_debias_moving_mean: Divide the moving mean by `1 − momentum^step`, which removes the
            bias of its initial zero (adds two non-trainable weights).
        bessel_correction: Update the moving variance with the unbiased n/(n−1) estimate, n being
            the count over all ranks. Keras uses the population variance.
        activation: Applied to the outputs, after the addition of a residual.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating point, any rank ≥ 2. Statistics of float16 and bfloat16 inputs are computed
            in float32 or wider.
        training: Python bool.
        mask: True for valid positions, of the shape of `inputs` without the last axis (as in
            Keras), or without the channel axis if only that fits. Masked values, including NaN, do
            not affect the statistics of any rank.
        batch_weights: Frequency weight of each sample, shape (batch,), not negative; a sample of
            weight 2 counts as two equal samples.
        residual: Added to the normalized values before the activation, as in residual networks
            (He et al., 2015): a tensor of the shape of `inputs`, of any float dtype if the layer
            casts its inputs (`autocast`, the default), else of the same. Masks and weights do not
            affect it, and half precision is rounded once, after the activation.

    Raises:
        ValueError: An invalid argument; the message has the expected and the received value.
        syncbn.errors.NotInitializedError: Several processes, but no `syncbn.init()`.

    References:
        - Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167
        - Ioffe, 2017, https://arxiv.org/abs/1702.03275
        - Hoffer et al., 2017, https://arxiv.org/abs/1705.08741
        - He et al., 2015, https://arxiv.org/abs/1512.03385
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: dict[str, float] | None = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = True,
        communicator: str | Communicator = "auto",
        group_size: int | None = None,
        virtual_batch_size: int | None = None,
        adjustment: Adjustment | None = None,
        zero_debias_moving_mean: bool = False,
        bessel_correction: bool = False,
        activation: Any = None,
        **kwargs: Any,
    ) -> None:
        arguments.check_backend()
        arguments.check_numbers(momentum, renorm_momentum, epsilon)
        if renorm:
            arguments.check_renorm_clipping(renorm_clipping)
        super().__init__(
            axis=axis,
            momentum=momentum,
            epsilon=epsilon,
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            moving_mean_initializer=moving_mean_initializer,
            moving_variance_initializer=moving_variance_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            renorm=renorm,
            renorm_clipping=renorm_clipping,
            renorm_momentum=renorm_momentum,
            synchronized=synchronized,
            **kwargs,
        )
        arguments.check_communicator(communicator)
        arguments.check_positive_integer("group_size", group_size)
        arguments.check_positive_integer("virtual_batch_size", virtual_batch_size)
        arguments.check_adjustment(adjustment)
        arguments.check_compatible(self.renorm, virtual_batch_size, group_size)
        self._convert_input_args = False  # `__call__` does it
        self.communicator = communicator
        self.group_size = group_size
        self.virtual_batch_size = virtual_batch_size
        self.adjustment = adjustment
        self.zero_debias_moving_mean = zero_debias_moving_mean
        self.bessel_correction = bessel_correction
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        arguments.check_axis(self.axis, input_shape, self.virtual_batch_size)
        super().build(input_shape)
        self._layout = Layout(len(input_shape), self.axis % len(input_shape))
        if self.zero_debias_moving_mean:
            # A mask may vary along the channels, so each channel has its own step.
            options = {"shape": self.moving_mean.shape, "initializer": "zeros", "trainable": False}
            for name in ("moving_mean_biased", "moving_mean_step"):
                setattr(self, name, self.add_weight(name=name, autocast=False, **options))

    def __call__(self, inputs: Any, *args: Any, residual: Any = None, **kwargs: Any) -> Any:
        # Keras casts every float argument to the compute dtype, but batch_weights in half precision
        # would lose counts.
        inputs = self._converted(inputs)
        if residual is None:
            return super().__call__(inputs, *args, **kwargs)
        residual = self._converted(residual)
        residuals.check(inputs, residual)
        outputs = super().__call__(inputs, *args, residual=residual, **kwargs)
        residuals.set_mask(outputs, inputs, residual)
        return outputs

    def _converted(self, value: Any) -> Any:
        """`value` as a tensor of the compute dtype, with its mask."""
        mask = getattr(value, "_keras_mask", None)
        value = self.dtype_policy.convert_input(value, self.autocast, self.input_dtype)
        if mask is not None:
            value._keras_mask = mask
        return value

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        mask: tf.Tensor | None = None,
        batch_weights: tf.Tensor | None = None,
        residual: tf.Tensor | None = None,
    ) -> tf.Tensor:
        weights = arguments.joint_weights(inputs, self._layout, mask, batch_weights)
        gamma, beta = self._gamma_beta(compute_dtype(inputs.dtype))
        if training and self.trainable:
            if self.synchronized and self.communicator == "auto" and self.group_size is None:
                consistency.note_layer(self)
            return self._by_batch_statistics(inputs, weights, gamma, beta, residual)
        outputs = normalize.by_moving_statistics(
            inputs, self._moving(), gamma, beta, self._layout, self.epsilon
        )
        outputs = residuals.add(outputs, residual)
        return self.activation(tf.cast(outputs, self.compute_dtype))

    def _by_batch_statistics(
        self,
        inputs: tf.Tensor,
        weights: tf.Tensor | None,
        gamma: tf.Tensor,
        beta: tf.Tensor,
        residual: tf.Tensor | None,
    ) -> tf.Tensor:
        """Training: normalizes by the moments of the global batch, updates moving statistics."""
        if self.adjustment is None:
            if inputs.dtype != self.compute_dtype:
                inputs = tf.cast(inputs, gamma.dtype)  # to round to half precision only once
            return self._normalize(inputs, gamma, beta, weights, residual, self.activation)
        adjusted, bias = (tf.cast(v, gamma.dtype) for v in self.adjustment(tf.shape(inputs)))
        scale = adjusted * self._layout.spread(gamma)
        offset = bias * self._layout.spread(gamma) + self._layout.spread(beta)
        inputs = tf.cast(inputs, gamma.dtype)
        if self._layout.by_channel(scale.shape) and self._layout.by_channel(offset.shape):
            scale, offset = (tf.reshape(v, [-1]) for v in (scale, offset))
            return self._normalize(inputs, scale, offset, weights, residual, self.activation)
        outputs = self._normalize(inputs, tf.ones_like(gamma), tf.zeros_like(beta), weights)
        outputs = residuals.add(outputs * scale + offset, residual)
        return self.activation(tf.cast(outputs, self.compute_dtype))

    def _normalize(
        self,
        inputs: tf.Tensor,
        scale: tf.Tensor,
        offset: tf.Tensor,
        weights: tf.Tensor | None,
        residual: tf.Tensor | None = None,
        activation: Any = None,
    ) -> tf.Tensor:
        """activation(x̂·scale + offset + residual); x̂·r + d instead of x̂ with renorm."""
        # Not `path`, which lacks the model's name in a loaded layer: ranks may load or build.
        rectifier = rectifier_of(activation)
        residual = None if residual is None else tf.cast(residual, inputs.dtype)
        context = NormContext(
            self._layout, self.epsilon, self._group(), self.name, weights, residual, rectifier
        )
        moving, block_size = self._moving(), self.virtual_batch_size
        renorm = self._renorm() if self.renorm else None
        if block_size is not None:
            outputs, batch = ghost.normalization(inputs, scale, offset, context, moving, block_size)
        else:
            outputs, batch = normalize.synchronized_normalization(
                inputs, scale, offset, context, moving, renorm
            )
        after = dict(batch.moved or moving_statistics.update(batch, moving, renorm, self.epsilon))
        if self.zero_debias_moving_mean:
            biased = tf.convert_to_tensor(self.moving_mean_biased)
            step = tf.convert_to_tensor(self.moving_mean_step)
            after |= normalize.zero_debiased_update(batch, moving, biased, step)
        for name, value in after.items():
            getattr(self, name).assign(value)
        if activation is not None:
            outputs = tf.cast(outputs, self.compute_dtype)
        return outputs if activation is None or rectifier is not None else activation(outputs)

    def _moving(self) -> MovingStatistics:
        mean, variance = map(tf.convert_to_tensor, (self.moving_mean, self.moving_variance))
        return MovingStatistics(mean, variance, self.momentum, self.bessel_correction)

    def _renorm(self) -> RenormStatistics:
        tracked = (self.renorm_mean, self.renorm_stddev, self.moving_stddev)
        mean, stddev, moving = map(tf.convert_to_tensor, tracked)
        limits = self.renorm_clipping or {}
        return RenormStatistics(mean, stddev, moving, self.renorm_momentum, limits)

    def _group(self) -> Communicator:
        """The ranks that share statistics."""
        world = resolve(self.communicator if self.synchronized else "local")
        group = world if self.group_size is None else world.subgroup(self.group_size)
        return contributing(group)

    def _gamma_beta(self, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
        """γ and β, shape (C,); ones and zeros if the layer has none."""
        shape = self.moving_mean.shape
        gamma = tf.cast(self.gamma, dtype) if self.scale else tf.ones(shape, dtype)
        beta = tf.cast(self.beta, dtype) if self.center else tf.zeros(shape, dtype)
        return gamma, beta

    def get_config(self) -> dict[str, Any]:
        chosen = self.communicator
        return {
            **super().get_config(),
            "communicator": chosen if isinstance(chosen, str) else chosen.name,
            "group_size": self.group_size,
            "virtual_batch_size": self.virtual_batch_size,
            "adjustment": keras.saving.serialize_keras_object(self.adjustment),
            "zero_debias_moving_mean": self.zero_debias_moving_mean,
            "bessel_correction": self.bessel_correction,
            "activation": keras.activations.serialize(self.activation),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SyncBatchNormalization":
        config = dict(config)
        if isinstance(config.get("adjustment"), dict):
            config["adjustment"] = keras.saving.deserialize_keras_object(config["adjustment"])
        return cls(**config)

    def __repr__(self) -> str:
        return f"<SyncBatchNormalization name={self.name}, built={self.built}>"

    @property
    def supports_jit(self) -> bool:
        """Read by `compile(jit_compile="auto")`: XLA cannot compile most collectives."""
        if not self.synchronized:
            return self._supports_jit
        try:
            return self._supports_jit and resolve(self.communicator).jit_compatible
        except SyncbnError:  # not initialised; raised by the first call
            return False

    @supports_jit.setter
    def supports_jit(self, value: bool) -> None:
        self._supports_jit = value


# Keras derives the path of weights in .weights.h5 and .keras files from the class name
# (`layers/batch_normalization/vars`): with the same name, files fit models with either layer.
SyncBatchNormalization.__name__ = keras.layers.BatchNormalization.__name__
