"""The layers both networks are made of.

What is shared and what is separate is decided in one place, `PerModality`. Every other layer passes the name of the
modality on and otherwise looks like an ordinary layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from ummkd_tf import winograd
from ummkd_tf.settings import SHARED

Normalization = Literal["batch", "instance", "layer", "group"]
Initialization = Literal["released", "glorot"]


class PerModality(keras.layers.Layer):
    """One layer for all modalities, or one for each under its own name scope (Sec. III-A).

    Variable paths end in `…/<name>/shared/gamma`, or in `…/<name>/ct/gamma` and `…/<name>/mr/gamma`.

    Args:
        make: Makes the layer, given its name.
        modalities: Names of the modalities.
        separate: One layer for each modality instead of one for all.
        name: Scope.

    Call arguments:
        inputs: Tensor.
        modality: Which layer to use; any value where one layer is shared.
        training: Passed on where the layer takes it.
    """

    def __init__(
        self, make: Callable[[str], keras.layers.Layer], modalities: Sequence[str], *, separate: bool, name: str
    ) -> None:
        super().__init__(name=name)
        self.separate = separate
        self.sublayers = {key: make(key) for key in (modalities if separate else (SHARED,))}

    def build(self, input_shape: Sequence[int | None]) -> None:
        for layer in self.sublayers.values():
            layer.build(input_shape)

    def call(self, inputs: tf.Tensor, *, modality: str, **kwargs: Any) -> tf.Tensor:
        return self.sublayers[modality if self.separate else SHARED](inputs, **kwargs)


class BatchNorm(keras.layers.Layer):
    """Eq. 1 over the whole batch: decay 0.90, epsilon 1e-3, scale and centre on, as released.

    The running variance follows the released code: unbiased N/(N-1) in 2D (TF 1's fused kernel), biased in 3D.
    Uses TensorFlow's fused kernel in both, which keeps fewer copies for the gradient.

    Args:
        name: Scope.

    Call arguments:
        inputs: [batch, *space, channels].
        training: Normalize with the batch's statistics instead of the running ones, which they move.
        again: The same batch was here before, see `made_again`: running statistics stay.
    """

    epsilon = 1e-3
    decay = 0.90
    running = ("moving_mean", "moving_variance")

    def build(self, input_shape: Sequence[int | None]) -> None:
        channels = (input_shape[-1],)
        self.unbiased = len(input_shape) == 4
        names = ("gamma", "beta", *self.running)
        for name, initializer in zip(names, ("ones", "zeros", "zeros", "ones"), strict=True):
            trainable = name not in self.running
            # autocast=False: the fused kernel takes them as float32 in mixed precision too.
            weight = self.add_weight(
                name=name, shape=channels, initializer=initializer, trainable=trainable, autocast=False
            )
            setattr(self, name, weight)

    def call(self, inputs: tf.Tensor, *, training: bool = False, again: bool = False) -> tf.Tensor:
        shape = tf.shape(inputs)
        # The fused kernel takes images: depth becomes part of the width.
        images = inputs if inputs.shape.rank == 4 else tf.reshape(inputs, [shape[0], shape[1], -1, inputs.shape[-1]])
        statistics = {} if training else {"mean": self.moving_mean.value, "variance": self.moving_variance.value}
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            images,
            self.gamma.value,
            self.beta.value,
            epsilon=self.epsilon,
            is_training=training,
            **statistics,
        )
        if training and not again:
            if not self.unbiased:
                count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
                variance *= (count - 1.0) / count
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.value.assign_sub((moving.value - batch) * (1.0 - self.decay))
        return outputs if inputs.shape.rank == 4 else tf.reshape(outputs, shape)


class GroupNorm(keras.layers.GroupNormalization):
    """`keras.layers.GroupNormalization` that is called like `BatchNorm`."""

    def call(self, inputs: tf.Tensor, *, again: bool = False) -> tf.Tensor:
        return super().call(inputs)


def make_norm(kind: Normalization, channels: int, name: str) -> keras.layers.Layer:
    """A normalization layer of Table V, all with epsilon 1e-3 and a scale and shift per channel.

    Args:
        kind: Which activations share statistics.
        channels: Channels of the input.
        name: Scope.
    """
    if kind == "batch":
        return BatchNorm(name=name)
    groups = {
        "instance": channels,
        "layer": 1,
        # Our choice, because the paper gives no number: eight groups, fewer where eight does not divide.
        "group": math.gcd(8, channels),
    }
    if kind not in groups:
        raise ValueError(f"unknown normalization {kind!r}: expected one of batch, {', '.join(groups)}")
    return GroupNorm(groups=groups[kind], epsilon=1e-3, name=name)


def make_initializer(kind: Initialization, up: bool) -> keras.initializers.Initializer:
    """How a kernel starts: "released", a truncated normal (up-convolutions: a normal) of deviation 0.01; or "glorot".

    Glorot is our choice for short trainings: from the released kernels the first hundreds of steps bring little (at
    preset tiny, 250 steps on real scans, validation Dice 0.25 against 0.58).
    """
    if kind == "glorot":
        return keras.initializers.GlorotUniform()
    if kind != "released":
        raise ValueError(f"unknown initialization {kind!r}: expected one of released, glorot")
    return keras.initializers.RandomNormal(stddev=0.01) if up else keras.initializers.TruncatedNormal(stddev=0.01)


@tf.custom_gradient
def leaky_relu(inputs: tf.Tensor) -> tf.Tensor:
    """The released code's activation, slope 0.2.

    Its gradient asks the output for the sign, which the input has too, so that the input need not be kept.
    """
    outputs = tf.nn.leaky_relu(inputs, 0.2)

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.LeakyReluGrad(gradients=upstream, features=outputs, alpha=0.2)

    return outputs, gradient


def made_again(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """The function, but for its gradient it is called again, with `again=True`, so that only its arguments are kept.

    Costs a little time and saves half of the memory of activations. Not a bit changes.
    """

    @tf.custom_gradient
    def once(*inputs: tf.Tensor) -> tf.Tensor:
        def gradient(upstream: tf.Tensor, variables: Sequence[tf.Variable] = ()) -> tuple:
            # The dependency keeps TensorFlow from merging this with the first time.
            with tf.control_dependencies([upstream]):
                inputs_again = [tf.identity(x) for x in inputs]
            with tf.GradientTape() as tape:
                tape.watch(inputs_again)
                result = function(*inputs_again, again=True)
            of_inputs, of_variables = tape.gradient(result, (inputs_again, list(variables)), upstream)
            return (of_inputs, of_variables) if variables else of_inputs

        return function(*inputs), gradient

    return once


def phase_shift(inputs: tf.Tensor, factor: int) -> tf.Tensor:
    """Rearranges `[batch, h, w, factor² · channels]` into `[batch, h · factor, w · factor, channels]`.

    One TensorFlow operation. The released code orders the input channels differently; `tf1_names.py` permutes them on
    import, which makes the two networks the same.
    """
    return tf.nn.depth_to_space(inputs, factor)


class Dropout(keras.layers.Layer):
    """Sets a share of the activations to zero in training, and scales up the rest.

    As `keras.layers.Dropout`, but its random state has the same path in every model, so that checkpoints hold it.
    """

    def __init__(self, rate: float) -> None:
        super().__init__(name="dropout")
        self.rate = rate

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.seed_generator = keras.random.SeedGenerator(name="seed_generator")

    def call(self, inputs: tf.Tensor, *, training: bool = False) -> tf.Tensor:
        return keras.random.dropout(inputs, self.rate, seed=self.seed_generator) if training else inputs


class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` that takes Winograd's way where that is faster on a CPU."""

    # Measured, forward and backward at 32×32 on two cores: 2.1 times faster from 512 to 2560 channels, 1.6 at 512,
    # 1.3 at 256, even at 128, slower below.
    winograd_channels = 256

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        channels, filters = self.kernel.shape[2:]
        narrow = min(channels, filters) < self.winograd_channels
        if self.kernel_size != (3, 3) or narrow or self.compute_dtype != "float32":  # its sums need the digits
            return super().call(inputs)
        (dilation, _) = self.dilation_rate
        border = [dilation if self.padding == "same" else 0] * 2
        padded = tf.pad(inputs, [[0, 0], border, border, [0, 0]])
        return winograd.convolve(padded, tf.convert_to_tensor(self.kernel), dilation)


class Conv3D(keras.layers.Conv3D):
    """`keras.layers.Conv3D` that never joins an input with its skip, to save memory: a convolution adds over channels.

    Call arguments:
        inputs: [batch, height, width, depth, channels].
        skip: What belongs behind the inputs' channels, or None.
    """

    def build(self, input_shape: Sequence[int | None]) -> None:
        super().build(input_shape)
        self.input_spec = None  # it asks for all channels in one input

    def call(self, inputs: tf.Tensor, skip: tf.Tensor | None = None) -> tf.Tensor:
        if skip is None:
            return super().call(inputs)
        kernels = tf.split(tf.convert_to_tensor(self.kernel), [inputs.shape[-1], skip.shape[-1]], axis=3)
        return tf.add_n([self.convolution_op(x, kernel) for x, kernel in zip((inputs, skip), kernels, strict=True)])


class ConvUnit(keras.layers.Layer):
    """A convolution with the normalization and activation that belong to it.

    Args:
        filters: Output channels.
        kernel_size: Kernel along each spatial axis.
        order: "norm-act-conv" (2D network), "conv-norm-act" (3D network), or "conv" alone.
        dilation: Dilation rate.
        up: Transposed convolution with stride 2 along every axis.
        symmetric_pad: Mirror the border instead of padding with zeros.
        use_bias: Adds a bias to the convolution.
        dropout: Share of activations set to zero after the convolution, in training only.
        modalities: Names of the modalities.
        separate_kernel: One kernel per modality.
        separate_norm: One normalization layer per modality.
        make_norm: Makes a normalization layer, given channels and name.
        initialization: How the kernel starts.
        fast: See `UnpairedSegmenter`.
        name: Scope.

    Call arguments:
        inputs: [batch, *space, channels].
        modality: Modality of the batch, or `settings.SHARED` for a batch of all modalities.
        skip: What is joined behind the inputs' channels, or None.
        after: Unit of order "conv-norm-act" whose activation is still to be done on the inputs, or None.
        activate: Whether to do the activation at the end; where not, the next unit does it `after` this one. An
            activation and the convolution behind it belong together because the first is made again for the gradient
            of the second.
        training: Whether to normalize with batch statistics and drop out.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: tuple[int, ...],
        *,
        order: Literal["norm-act-conv", "conv-norm-act", "conv"],
        modalities: Sequence[str],
        separate_kernel: bool,
        separate_norm: bool,
        make_norm: Callable[[int, str], keras.layers.Layer],
        initialization: Initialization,
        fast: bool,
        name: str,
        dilation: int = 1,
        up: bool = False,
        symmetric_pad: bool = False,
        use_bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(name=name)
        self.filters, self.order, self.symmetric_pad = filters, order, symmetric_pad
        self.kernel_size, self.make_norm, self.fast = kernel_size, make_norm, fast
        self.modalities, self.separate_norm = tuple(modalities), separate_norm
        kind = {
            (2, False): Conv2D if fast else keras.layers.Conv2D,
            (3, False): Conv3D if fast else keras.layers.Conv3D,
            (3, True): keras.layers.Conv3DTranspose,
        }[len(kernel_size), up]

        def make_conv(name: str) -> keras.layers.Layer:
            return kind(
                filters,
                kernel_size,
                strides=2 if up else 1,
                padding="valid" if symmetric_pad else "same",
                dilation_rate=dilation,
                use_bias=use_bias,
                kernel_initializer=make_initializer(initialization, up),
                name=name,
            )

        self.conv = PerModality(make_conv, modalities, separate=separate_kernel, name="conv")
        self.dropout = Dropout(dropout) if dropout else None

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.conv.build(input_shape)
        if self.order != "conv":
            channels = input_shape[-1] if self.order == "norm-act-conv" else self.filters
            assert channels is not None
            self.norm = PerModality(
                lambda name: self.make_norm(channels, name),
                self.modalities,
                separate=self.separate_norm,
                name="norm",
            )
            self.norm.build((*input_shape[:-1], channels))
        if self.dropout:
            self.dropout.build(input_shape)

    def activate(self, x: tf.Tensor, *, modality: str, training: bool, again: bool = False) -> tf.Tensor:
        """Normalization and activation; `again`: of a batch that was here before."""
        return leaky_relu(self.norm(x, modality=modality, training=training, again=again))

    def convolve(self, x: tf.Tensor, *, modality: str, skip: tf.Tensor | None = None) -> tf.Tensor:
        """Joining, padding and convolution."""
        if skip is not None and not self.fast:
            x, skip = tf.concat([x, skip], -1), None
        if self.symmetric_pad:
            border = [[k // 2, k // 2] for k in self.kernel_size]
            x = tf.pad(x, [[0, 0], *border, [0, 0]], mode="SYMMETRIC")
        return self.conv(x, modality=modality, **({} if skip is None else {"skip": skip}))

    def call(
        self,
        inputs: tf.Tensor,
        *,
        modality: str,
        skip: tf.Tensor | None = None,
        after: ConvUnit | None = None,
        activate: bool = True,
        training: bool = False,
    ) -> tf.Tensor:
        activating = self if self.order == "norm-act-conv" else after

        def convolve(x: tf.Tensor, skip: tf.Tensor | None = None, *, again: bool = False) -> tf.Tensor:
            if activating is not None:
                x = activating.activate(x, modality=modality, training=training, again=again)
            return self.convolve(x, modality=modality, skip=skip)

        x = (made_again(convolve) if self.fast else convolve)(inputs, *([] if skip is None else [skip]))
        if self.order == "conv-norm-act" and activate:
            x = self.activate(x, modality=modality, training=training)
        return self.dropout(x, training=training) if self.dropout else x


class ResidualBlock(keras.layers.Layer):
    """Two units plus the identity; where the channels grow, the identity is zero-padded on both sides of their axis.

    Args:
        units: The two `ConvUnit`s.
        name: Scope.
    """

    def __init__(self, units: Sequence[ConvUnit], *, name: str) -> None:
        super().__init__(name=name)
        self.units = list(units)
        self.filters = units[-1].filters

    def build(self, input_shape: Sequence[int | None]) -> None:
        for unit in self.units:
            unit.build(input_shape)
            input_shape = (*input_shape[:-1], unit.filters)

    def call(self, inputs: tf.Tensor, *, modality: str, training: bool = False) -> tf.Tensor:
        x = inputs
        for unit in self.units:
            x = unit(x, modality=modality, training=training)
        grown = self.filters - inputs.shape[-1]
        if grown:
            none = [[0, 0]] * (inputs.shape.rank - 1)
            inputs = tf.pad(inputs, [*none, [grown // 2, grown - grown // 2]])
        return x + inputs
