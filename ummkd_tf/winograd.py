"""3×3 convolutions with 2.25 times fewer multiplications: Winograd's F(2×2, 3×3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016): a 2×2 tile of the result comes from a
4×4 tile of the image as `Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`. Over all channels and tiles the product ⊙ becomes sixteen matrix
products, where a CPU reaches its peak. Differences from the direct sum are those of float32 (about 1e-6); larger tiles
would save more multiplications and lose digits, so they are not used.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

_IMAGE = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)  # Bᵀ
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)  # G
_RESULT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)  # Aᵀ
# Along both axes at once: a tile's rows and columns are one axis of 16, 9 or 4.
_IMAGE_2D, _KERNEL_2D, _RESULT_2D = (np.kron(m, m) for m in (_IMAGE, _KERNEL, _RESULT))


def convolve(images: tf.Tensor, kernel: tf.Tensor, dilation: int = 1) -> tf.Tensor:
    """`tf.nn.conv2d(images, kernel, 1, "VALID", dilations=dilation)` for a 3×3 kernel.

    Args:
        images: [batch, height, width, in_channels].
        kernel: [3, 3, in_channels, out_channels].
        dilation: Steps between the kernel's entries.

    Returns:
        [batch, height - 2 · dilation, width - 2 · dilation, out_channels].
    """
    if dilation == 1:
        return _convolve(images, kernel)
    # Rows and columns with the same remainder modulo the dilation make an image of their own.
    height, width = (tf.shape(images)[axis] for axis in (1, 2))
    rest = [[0, -height % dilation], [0, -width % dilation]]
    parts = _convolve(tf.space_to_batch(images, [dilation] * 2, rest), kernel)
    return tf.batch_to_space(parts, [dilation] * 2, rest)


@tf.custom_gradient
def _convolve(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """`convolve` with dilation 1. Tiles are four times the image: they are made again for the gradient, not kept."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # The dependency keeps TensorFlow from merging this with the forward pass, and so from keeping the tiles.
        with tf.control_dependencies([upstream]):
            images_again, kernel_again = tf.identity(images), tf.identity(kernel)
        with tf.GradientTape() as tape:
            tape.watch((images_again, kernel_again))
            result = _multiply_tiles(images_again, kernel_again)
        return tape.gradient(result, (images_again, kernel_again), upstream)

    return _multiply_tiles(images, kernel), gradient


def _multiply_tiles(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    channels, filters = kernel.shape[2:]
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    rows, columns = (height - 1) // 2, (width - 1) // 2  # of 2×2 tiles of the result, the last ones cut where odd
    x = tf.pad(images, [[0, 0], [0, 2 * rows + 2 - height], [0, 2 * columns + 2 - width], [0, 0]])
    x = _overlapping_pairs(tf.reshape(x, [batch, rows + 1, 2, 2 * columns + 2, channels]), 1)
    x = _overlapping_pairs(tf.reshape(x, [batch, rows, 4, columns + 1, 2, channels]), 3)
    tiles = tf.transpose(x, [2, 4, 0, 1, 3, 5])  # [4, 4, batch, rows, columns, channels]
    tiles = tf.reshape(tf.matmul(_IMAGE_2D, tf.reshape(tiles, [16, -1])), [16, -1, channels])
    kernels = tf.matmul(_KERNEL_2D, tf.reshape(kernel, [9, -1]))
    products = tf.matmul(tiles, tf.reshape(kernels, [16, channels, filters]))
    y = tf.matmul(_RESULT_2D, tf.reshape(products, [16, -1]))
    y = tf.transpose(tf.reshape(y, [2, 2, batch, rows, columns, filters]), [2, 3, 0, 4, 1, 5])
    y = tf.reshape(y, [batch, 2 * rows, 2 * columns, filters])
    return tf.slice(y, [0, 0, 0, 0], [batch, height - 2, width - 2, filters])


def _overlapping_pairs(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Joins each entry along an axis with the next one, along the axis after it."""
    # tf.slice, because the gradient of x[:-1] is ten times slower.
    size = tf.shape(x)
    one = tf.one_hot(axis, x.shape.rank, dtype=tf.int32)
    return tf.concat([tf.slice(x, tf.zeros_like(size), size - one), tf.slice(x, one, size - one)], axis + 1)
