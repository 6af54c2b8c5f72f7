"""A network of one's own: a residual-encoder U-Net of today, in plain Keras (docs/extending.md shows it)."""

from __future__ import annotations

import keras
from keras import layers


def residual_unet(num_classes: int, width: int = 16, levels: int = 3, rank: int = 3, channels: int = 1) -> keras.Model:
    """Residual encoder, plain decoder; every level halves rows and columns, and keeps the depth.

    Args:
        num_classes: C, background included.
        width: Channels of the first level; each level doubles them.
        levels: Resolutions.
        rank: 2 or 3 spatial axes.
        channels: Of the images.
    """
    conv = {2: layers.Conv2D, 3: layers.Conv3D}[rank]
    up = {2: layers.Conv2DTranspose, 3: layers.Conv3DTranspose}[rank]
    kernel, half = ((3, 3), (2, 2)) if rank == 2 else ((3, 3, 3), (2, 2, 1))

    def unit(x, filters, strides=1):
        x = conv(filters, kernel, strides=strides, padding="same", use_bias=False)(x)
        return layers.LeakyReLU(0.01)(layers.BatchNormalization(momentum=0.9)(x))

    def residual(x, filters, strides):
        y = unit(x, filters, strides)
        y = layers.BatchNormalization(momentum=0.9)(conv(filters, kernel, padding="same", use_bias=False)(y))
        identity = conv(filters, 1, strides=strides, use_bias=False)(x)
        return layers.LeakyReLU(0.01)(layers.Add()([y, identity]))

    inputs = keras.Input((*(None,) * rank, channels))
    x, skips = inputs, []
    for level in range(levels):
        x = residual(x, width * 2**level, half if level else 1)
        skips.append(x)
    for level in reversed(range(levels - 1)):
        x = up(width * 2**level, half, strides=half)(x)
        x = unit(layers.Concatenate()([x, skips[level]]), width * 2**level)
    return keras.Model(inputs, conv(num_classes, 1)(x), name="residual_unet")
