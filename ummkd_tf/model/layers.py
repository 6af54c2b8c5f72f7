"""The layers both networks are made of.

What is shared and what is separate is decided in one place, `PerModality`. Every other layer passes the name of the
modality on and otherwise looks like an ordinary layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from ummkd_tf.model.architectures import Block, Conv, Initialization, Normalization, StageRow
from ummkd_tf.model.elements import Dropout, leaky_relu, make_initializer, mirror_border, phase_shift
from ummkd_tf.model.operations import PLAIN, Operations
from ummkd_tf.model.replicas import normalize_over_replicas, number_of_replicas, replica_means
from ummkd_tf.settings import SHARED


class PerModality(keras.layers.Layer):
    """One layer for all modalities, or one for each under its own name scope (Sec. III-A).

    Variable paths end in `…/<name>/shared/gamma`, or in `…/<name>/ct/gamma` and `…/<name>/mr/gamma`.

    Args:
        make: Makes the layer, given its name.
        modalities: Names of the modalities.
        separate: One layer for each modality instead of one for all.
        name: Scope.

    Call arguments:
        modality: Which layer to use; any value where one layer is shared.
        **kwargs: Passed on to the layer.

    Example:
        >>> import keras, tensorflow as tf
        >>> from ummkd_tf.model.layers import PerModality
        >>> def make(name):
        ...     return keras.layers.Dense(1, use_bias=False, name=name)
        >>> shared = PerModality(make, ["ct", "mr"], separate=False, name="conv")
        >>> shared.build((None, 3))
        >>> [v.path for v in shared.variables]
        ['conv/shared/kernel']
        >>> separate = PerModality(make, ["ct", "mr"], separate=True, name="norm")
        >>> separate.build((None, 3))
        >>> [v.path for v in separate.variables]
        ['norm/ct/kernel', 'norm/mr/kernel']
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

    def of(self, modality: str) -> keras.layers.Layer:
        """The layer that a batch of this modality uses."""
        return self.sublayers[modality if self.separate else SHARED]

    def call(self, inputs: tf.Tensor, *, modality: str, **kwargs: Any) -> tf.Tensor:
        return self.of(modality)(inputs, **kwargs)


class BatchNorm(keras.layers.Layer):
    """Eq. 1 over the whole batch: decay 0.90, epsilon 1e-3, scale and centre on, as released.

    The running variance follows the released code: unbiased N/(N-1) in 2D (TF 1's fused kernel), biased in 3D. Keras's
    own layer has the biased one only.

    Args:
        name: Scope.

    Call arguments:
        inputs: [batch, *space, channels].
        training: Normalize with the batch's statistics and update the running ones; otherwise use the running ones.
    """

    epsilon = 1e-3
    momentum = 0.90
    synchronized = True  # with several replicas: statistics of the whole batch instead of the replica's own
    running = ("moving_mean", "moving_variance")

    def build(self, input_shape: Sequence[int | None]) -> None:
        channels = (input_shape[-1],)
        self.unbiased = len(input_shape) == 4
        names = ("gamma", "beta", *self.running)
        for name, initializer in zip(names, ("ones", "zeros", "zeros", "ones"), strict=True):
            # autocast=False: the fused kernel takes them as float32 in mixed precision too.
            kind = {"initializer": initializer, "trainable": name not in self.running, "autocast": False}
            setattr(self, name, self.add_weight(channels, name=name, **kind))

    def call(self, inputs: tf.Tensor, *, training: bool = False) -> tf.Tensor:
        outputs, mean, variance = self.normalize(inputs, training=training)
        if training:
            if not self.unbiased:
                replicas = number_of_replicas() if self.synchronized else 1
                count = tf.cast(tf.size(inputs) // inputs.shape[-1] * replicas, tf.float32)
                variance *= (count - 1.0) / count
            statistics = [mean, variance] if self.synchronized else replica_means([mean, variance])
            for moving, batch in zip((self.moving_mean, self.moving_variance), statistics, strict=True):
                moving.value.assign_sub((moving.value - batch) * (1.0 - self.momentum))
        return outputs

    def normalize(self, inputs: tf.Tensor, *, training: bool) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Normalized inputs, and the mean and the unbiased variance used; the running statistics stay."""
        if training and self.synchronized and number_of_replicas() > 1:
            return normalize_over_replicas(inputs, self.gamma, self.beta, self.moving_mean, self.epsilon)
        shape = tf.shape(inputs)
        # The fused kernel takes images: depth becomes part of the width.
        images = inputs if inputs.shape.rank == 4 else tf.reshape(inputs, [shape[0], shape[1], -1, inputs.shape[-1]])
        statistics = {} if training else {"mean": self.moving_mean.value, "variance": self.moving_variance.value}
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            images, self.gamma.value, self.beta.value, epsilon=self.epsilon, is_training=training, **statistics
        )
        return outputs if inputs.shape.rank == 4 else tf.reshape(outputs, shape), mean, variance


def make_norm(kind: Normalization, channels: int, name: str) -> keras.layers.Layer:
    """A normalization layer of Table V, all with a scale and shift per channel.

    Groups and epsilon are those of the upload's (unused) functions for instance and group normalization; it has none
    for layer normalization, and the same epsilon there is our choice.

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
        "group": math.gcd(16, channels),  # fewer where 16 does not divide: our choice, because the authors' would fail
    }
    if kind not in groups:
        raise ValueError(f"unknown normalization {kind!r}: expected one of batch, {', '.join(groups)}")
    return keras.layers.GroupNormalization(groups=groups[kind], epsilon=1e-6, name=name)


class ConvUnit(keras.layers.Layer):
    """A convolution with the normalization and activation that belong to it.

    Args:
        conv: Row of the architecture.
        options: What all units of a stage have in common.
        name: Scope.

    Call arguments:
        inputs: [batch, *space, channels].
        modality: Modality of the batch, or `settings.SHARED` for a batch of all modalities.
        training: Whether to normalize with batch statistics and drop out.
    """

    def __init__(self, conv: Conv, options: StageOptions, *, name: str) -> None:
        super().__init__(name=name)
        self.row, self.options = conv, options
        self.filters = conv.filters.count(options.width, options.num_classes)
        kind = options.operations.convolutions[len(conv.kernel_size), conv.up]

        def make(name: str) -> keras.layers.Layer:
            return kind(
                self.filters,
                conv.kernel_size,
                strides=2 if conv.up else 1,
                padding="valid" if conv.symmetric_pad else "same",
                dilation_rate=conv.dilation,
                use_bias=conv.use_bias,
                kernel_initializer=make_initializer(options.initialization, conv.up),
                name=name,
            )

        self.conv = PerModality(make, options.modalities, separate=options.separate_kernels, name="conv")
        self.dropout = Dropout(options.dropout) if conv.dropout and options.dropout else None

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.conv.build(input_shape)
        if self.row.order != "conv":
            channels = input_shape[-1] if self.row.order == "norm-act-conv" else self.filters
            assert channels is not None
            self.norm = PerModality(
                lambda name: make_norm(self.options.normalization, channels, name),
                self.options.modalities,
                separate=self.options.separate_norms,
                name="norm",
            )
            self.norm.build((*input_shape[:-1], channels))
        if self.dropout:
            self.dropout.build(input_shape)

    def call(self, inputs: tf.Tensor, *, modality: str, training: bool = False) -> tf.Tensor:
        x = inputs
        if self.row.order == "norm-act-conv":
            x = leaky_relu(self.norm(x, modality=modality, training=training))
        x = self.conv(self.pad(x), modality=modality)
        if self.row.order == "conv-norm-act":
            x = leaky_relu(self.norm(x, modality=modality, training=training))
        return self.dropout(x, training=training) if self.dropout else x

    def pad(self, x: tf.Tensor) -> tf.Tensor:
        """Mirrors the border, where the row says so; the convolution is then without padding of its own."""
        return mirror_border(x, self.row.kernel_size) if self.row.symmetric_pad else x


@dataclass(frozen=True)
class StageOptions:
    """What all units of a stage have in common."""

    width: int  # base width w
    num_classes: int
    modalities: tuple[str, ...]
    separate_kernels: bool  # one kernel per modality
    separate_norms: bool  # one normalization layer per modality
    normalization: Normalization
    initialization: Initialization
    dropout: float  # share of activations set to zero after a convolution, in training only
    operations: Operations = PLAIN


class ResidualBlock(keras.layers.Layer):
    """Two units plus the identity; where the channels grow, the identity is zero-padded on both sides of their axis.

    Args:
        unit: Row of both units.
        options: What all units of a stage have in common.
        name: Scope.
    """

    def __init__(self, unit: Conv, options: StageOptions, *, name: str) -> None:
        super().__init__(name=name)
        self.units = [ConvUnit(unit, options, name=f"unit_{number}") for number in (1, 2)]
        self.filters = self.units[-1].filters
        self._run = options.operations.run_units

    def build(self, input_shape: Sequence[int | None]) -> None:
        if (input_shape[-1] or 0) > self.filters:
            raise ValueError(f"{self.name}: {self.filters} channels behind {input_shape[-1]}: expected as many or more")
        for unit in self.units:
            unit.build(input_shape)
            input_shape = (*input_shape[:-1], unit.filters)

    def call(self, inputs: tf.Tensor, *, modality: str, training: bool = False) -> tf.Tensor:
        outputs = self._run(self.units, inputs, modality=modality, training=training)
        grown = self.filters - inputs.shape[-1]
        if grown:
            inputs = tf.pad(inputs, [[0, 0]] * (inputs.shape.rank - 1) + [[grown // 2, grown - grown // 2]])
        return outputs + inputs


class Stage(keras.layers.Layer):
    """One row of a network as layers.

    Args:
        row: The row.
        options: What all its units have in common.

    Call arguments:
        inputs: [batch, *space, channels].
        skip: Output of the stage `row.skip`, joined behind the first layer's channels, or None.
        modality: Modality of the batch, or `settings.SHARED` for a batch of all modalities.
        training: Whether to normalize with batch statistics and drop out.
    """

    def __init__(self, row: StageRow, options: StageOptions) -> None:
        super().__init__(name=row.name)
        self.row, self.options = row, options
        self.blocks: list[ResidualBlock] = []
        self.units: list[ConvUnit] = []
        for layer in row.layers:
            if isinstance(layer, Block):
                self.blocks.append(ResidualBlock(layer.unit, options, name=f"block_{len(self.blocks) + 1}"))
            else:
                self.units.append(ConvUnit(layer, options, name=f"unit_{len(self.units) + 1}"))
        self.parts: list[ConvUnit | ResidualBlock] = [*self.units, *self.blocks]
        self.filters = self.parts[-1].filters // max(1, row.phase_shift) ** 2

    def modality_of(self, group: Sequence[str]) -> str:
        """Whose layers a batch of these modalities goes through."""
        return group[0] if self.options.separate_norms else SHARED

    def build(self, input_shape: Sequence[int | None], skip_channels: int = 0) -> None:
        for number, part in enumerate(self.parts):
            part.build(input_shape)
            joined = skip_channels if number == 0 else 0
            input_shape = (*input_shape[:-1], part.filters + joined)

    def call(
        self, inputs: tf.Tensor, *, modality: str, skip: tf.Tensor | None = None, training: bool = False
    ) -> tf.Tensor:
        x = inputs
        if self.row.pool:
            # SAME: a depth of 1 stays 1.
            x = tf.nn.max_pool(x, 2, 2, "SAME") if x.shape.rank == 4 else tf.nn.max_pool3d(x, 2, 2, "SAME")
        x = self.options.operations.run_units(self.units, x, modality=modality, training=training, skip=skip)
        for block in self.blocks:
            x = block(x, modality=modality, training=training)
        return phase_shift(x, self.row.phase_shift) if self.row.phase_shift else x
