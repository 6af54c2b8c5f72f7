"""Small parts of both networks: how kernels start, the activation, the phase shift, dropout."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from ummkd_tf.model.architectures import Initialization
from ummkd_tf.model.replicas import number_of_replicas, replica_number


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


def leaky_relu(inputs: tf.Tensor) -> tf.Tensor:
    """The released code's activation, slope 0.2."""
    return tf.nn.leaky_relu(inputs, 0.2)


def phase_shift(inputs: tf.Tensor, factor: int) -> tf.Tensor:
    """Rearranges `[batch, h, w, factor² · channels]` into `[batch, h · factor, w · factor, channels]`.

    One TensorFlow operation. The released code orders the input channels differently; `released/weights.py` permutes
    them on import, which makes the two networks the same.
    """
    return tf.nn.depth_to_space(inputs, factor)


def mirror_border(inputs: tf.Tensor, kernel_size: Sequence[int]) -> tf.Tensor:
    """Adds half a kernel on each side of every spatial axis, mirrored with the edge itself."""
    border = [[k // 2, k // 2] for k in kernel_size]
    return tf.pad(inputs, [[0, 0], *border, [0, 0]], mode="SYMMETRIC")


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
        if not training:
            return inputs
        if number_of_replicas() == 1:
            return keras.random.dropout(inputs, self.rate, seed=self.seed_generator)
        # The state is the same on every replica; what they drop must not be.
        seed = tf.cast(self.seed_generator.next(), tf.int32)
        seed = tf.random.experimental.stateless_fold_in(seed, replica_number())
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, seed)
