"""Convolutions that are faster or smaller than Keras's on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from ummkd_tf.common.processor import instructions
from ummkd_tf.fast import winograd


class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`, computed as a Winograd convolution where that is faster on a CPU."""

    # Measured, forward and backward at 32×32 on two cores: 2.1 times faster from 512 to 2560 channels, 1.6 at 512,
    # 1.3 at 256, even at 128, slower below.
    winograd_channels = 256

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        channels, filters = self.kernel.shape[2:]
        narrow = min(channels, filters) < self.winograd_channels
        # Only in float32: with 16 bits, the sums of a Winograd convolution lose too many digits. And without a bias,
        # which the 2D network's wide layers do not have.
        if self.kernel_size != (3, 3) or narrow or self.use_bias or self.compute_dtype != "float32":
            return super().call(inputs)
        (dilation, _) = self.dilation_rate
        border = [dilation if self.padding == "same" else 0] * 2
        padded = tf.pad(inputs, [[0, 0], border, border, [0, 0]])
        return winograd.convolve(padded, tf.convert_to_tensor(self.kernel), dilation)


class Conv3D(keras.layers.Conv3D):
    """`keras.layers.Conv3D` of one input, or of two that would otherwise be concatenated.

    A convolution is a sum over input channels, so convolving both and adding the results gives the same, without the
    memory of the concatenated tensor.

    Where the processor has AVX2 and no AVX512, the gradient by the kernel is computed in blocks of channels.

    Call arguments:
        inputs: [batch, height, width, depth, channels].
        skip: The second input, whose channels come behind those of the first, or None.
    """

    # Measured on an AMD EPYC of 2021: blocks of 16 channels take 0.5 to 0.8 times as long as all at once; beyond 64
    # channels they take as long, and blocks of 32 take longer.
    block_channels = 16
    most_channels = 64

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.input_spec = None  # it asks for all channels in one input

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        one_voxel = self.kernel_size == (1, 1, 1)
        odd = all(side % 2 for side in self.kernel_size)
        dense = {*self.strides, *self.dilation_rate} == {1}
        narrow = max(kernel.shape[3:]) <= self.most_channels
        fits = self.padding == "same" and odd and not one_voxel and dense and narrow and self.compute_dtype == "float32"
        if fits and _has_avx2_alone():
            return _convolve(inputs, tf.convert_to_tensor(kernel))
        return super().convolution_op(inputs, kernel)

    def call(self, inputs: tf.Tensor, skip: tf.Tensor | None = None) -> tf.Tensor:
        if skip is None:
            return super().call(inputs)
        kernels = tf.split(tf.convert_to_tensor(self.kernel), [inputs.shape[-1], skip.shape[-1]], axis=3)
        terms = [self.convolution_op(x, kernel) for x, kernel in zip((inputs, skip), kernels, strict=True)]
        return tf.add_n(terms) if self.bias is None else tf.add_n(terms) + self.bias


def _has_avx2_alone() -> bool:
    return "avx2" in instructions() and "avx512f" not in instructions()


@tf.custom_gradient
def _convolve(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tuple[tf.Tensor, tf.Tensor]]]:
    """3D convolution with stride 1 and a kernel of odd sides, over images with a border of zeros."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_images = tf.raw_ops.Conv3DBackpropInputV2(
            input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, strides=[1] * 5, padding="SAME"
        )
        return of_images, _gradient_by_kernel(images, upstream, kernel.shape)

    return tf.nn.conv3d(images, kernel, [1] * 5, "SAME"), gradient


def _gradient_by_kernel(images: tf.Tensor, upstream: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """In blocks of channels, and with the border as part of the images.

    In 3D, oneDNN's AVX2 code (version 3.7, in TensorFlow 2.21) does not do borders itself, and it is slow with many
    channels.
    """
    *sides, channels, filters = shape
    bordered = tf.pad(images, [[0, 0], *([side // 2, side // 2] for side in sides), [0, 0]])
    block = Conv3D.block_channels
    ins, outs = (count // block if count % block == 0 else 1 for count in (channels, filters))
    rows = [
        [
            tf.raw_ops.Conv3DBackpropFilterV2(
                input=of_channels,
                filter_sizes=[*sides, channels // ins, filters // outs],
                out_backprop=of_filters,
                strides=[1] * 5,
                padding="VALID",
            )
            for of_filters in tf.split(upstream, outs, axis=4)
        ]
        for of_channels in tf.split(bordered, ins, axis=4)
    ]
    return tf.concat([tf.concat(row, axis=4) for row in rows], axis=3)
