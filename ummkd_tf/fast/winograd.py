"""3×3 convolutions with 2.25 times fewer multiplications: Winograd's F(2×2, 3×3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016): a 2×2 tile of the result comes from a
4×4 tile of the image as `Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`. Over all channels and tiles the product ⊙ becomes sixteen matrix
products, where a CPU reaches its peak. Differences from the direct sum are those of float32 (about 1e-6); larger tiles
would save more multiplications and lose digits, so they are not used.

The tiles of a convolution are four times as large as its image. They exist only inside `_result` and `_gradients`,
which TensorFlow does not inline, so that few convolutions hold tiles at a time and the graph stays small.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

_IMAGE = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)  # Bᵀ
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)  # G
_RESULT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)  # Aᵀ
# Along both axes at once: a tile's rows and columns are one axis of 16, 9 or 4.
_IMAGE_2D, _KERNEL_2D, _RESULT_2D = (np.kron(m, m) for m in (_IMAGE, _KERNEL, _RESULT))

_FILTERS_AT_ONCE = 512  # measured: more take more memory, fewer take more time
_not_inlined: Callable = tf.function(autograph=False, experimental_attributes={"_noinline": True})


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
    height, width = _sizes(images)[1:3]
    rest = [[0, -height % dilation], [0, -width % dilation]]
    parts = _convolve(tf.space_to_batch(images, [dilation] * 2, rest), kernel)
    return tf.batch_to_space(parts, [dilation] * 2, rest)


@tf.custom_gradient
def _convolve(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """`convolve` with dilation 1, in groups of filters, one group after the other."""
    filters = kernel.shape[-1]
    groups = [(first, min(_FILTERS_AT_ONCE, filters - first)) for first in range(0, filters, _FILTERS_AT_ONCE)]

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_images, of_kernel = None, []
        for first, count in groups:
            with tf.control_dependencies([] if of_images is None else [of_images]):
                one, part = _gradients(images, kernel, upstream, tf.constant(first), count=count)
            of_images = one if of_images is None else of_images + one
            of_kernel.append(part)
        return of_images, _concatenated(of_kernel)

    parts: list[tf.Tensor] = []
    for first, count in groups:
        with tf.control_dependencies(parts[-1:]):
            parts.append(_result(images, kernel, tf.constant(first), count=count))
    return _concatenated(parts), gradient


@_not_inlined
def _result(images: tf.Tensor, kernel: tf.Tensor, first: tf.Tensor, *, count: int) -> tf.Tensor:
    batch, height, width, _ = _sizes(images)
    rows, columns = _tiling(images)
    products = tf.matmul(_tiles(images), _kernels(_filters(kernel, first, count)))
    y = tf.matmul(_RESULT_2D, tf.reshape(products, [16, -1]))
    y = tf.transpose(tf.reshape(y, [2, 2, batch, rows, columns, count]), [2, 3, 0, 4, 1, 5])
    y = tf.reshape(y, [batch, 2 * rows, 2 * columns, count])
    return tf.slice(y, [0, 0, 0, 0], [batch, height - 2, width - 2, count])


@_not_inlined
def _gradients(
    images: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, first: tf.Tensor, *, count: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradients of images and of some filters: each step of `_result` transposed, from the last to the first."""
    rows, columns = _tiling(images)
    y = _padded_to_tiles(_filters(upstream, first, count), images)
    y = tf.transpose(tf.reshape(y, [-1, rows, 2, columns, 2, count]), [2, 4, 0, 1, 3, 5])
    products = tf.matmul(_RESULT_2D, tf.reshape(y, [4, -1]), transpose_a=True)
    products = tf.reshape(products, [16, -1, count])
    with tf.GradientTape() as tape:
        tape.watch(images)
        tiles = _tiles(images)
    of_kernels = tf.matmul(tiles, products, transpose_a=True)
    of_kernel = tf.matmul(_KERNEL_2D, tf.reshape(of_kernels, [16, -1]), transpose_a=True)
    of_tiles = tf.matmul(products, _kernels(_filters(kernel, first, count)), transpose_b=True)
    return tape.gradient(tiles, images, of_tiles), tf.reshape(of_kernel, [*kernel.shape[:3], count])


def _tiling(images: tf.Tensor) -> tuple[tf.Tensor | int, tf.Tensor | int]:
    """Number of rows and columns of 2×2 tiles that cover the result; where a side is odd, the last ones are cut."""
    _, height, width, _ = _sizes(images)
    return (height - 1) // 2, (width - 1) // 2


def _padded_to_tiles(x: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Adds zeros below and at the right, so that whole tiles cover the images, or a tensor like their result."""
    _, height, width, _ = _sizes(images)
    rows, columns = _tiling(images)
    return tf.pad(x, [[0, 0], [0, 2 * rows + 2 - height], [0, 2 * columns + 2 - width], [0, 0]])


def _tiles(images: tf.Tensor) -> tf.Tensor:
    """[16, tiles, channels]: `Bᵀ d B` of every tile."""
    batch, _, _, channels = _sizes(images)
    rows, columns = _tiling(images)
    x = _padded_to_tiles(images, images)
    x = _overlapping_pairs(tf.reshape(x, [batch, rows + 1, 2, 2 * columns + 2, channels]), 1)
    x = _overlapping_pairs(tf.reshape(x, [batch, rows, 4, columns + 1, 2, channels]), 3)
    tiles = tf.transpose(x, [2, 4, 0, 1, 3, 5])  # [4, 4, batch, rows, columns, channels]
    return tf.reshape(tf.matmul(_IMAGE_2D, tf.reshape(tiles, [16, -1])), [16, -1, channels])


def _kernels(kernel: tf.Tensor) -> tf.Tensor:
    """[16, channels, filters]: `G g Gᵀ` of every kernel."""
    return tf.reshape(tf.matmul(_KERNEL_2D, tf.reshape(kernel, [9, -1])), [16, *kernel.shape[2:]])


def _overlapping_pairs(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Joins each entry along an axis with the next one, along the axis after it."""
    # tf.slice, because the gradient of x[:-1] is ten times slower.
    sizes = _sizes(x)
    sizes[axis] -= 1
    second = [int(i == axis) for i in range(len(sizes))]
    return tf.concat([tf.slice(x, [0] * len(sizes), sizes), tf.slice(x, second, sizes)], axis + 1)


def _filters(x: tf.Tensor, first: tf.Tensor, count: int) -> tf.Tensor:
    """`x[..., first : first + count]`."""
    return x if count == x.shape[-1] else tf.slice(x, [0, 0, 0, first], [*_sizes(x)[:-1], count])


def _concatenated(parts: list[tf.Tensor]) -> tf.Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, -1)


def _sizes(x: tf.Tensor) -> list[tf.Tensor | int]:
    """Sizes along all axes, as numbers where they are known: each saves operations."""
    sizes = tf.unstack(tf.shape(x)) if None in x.shape else [None] * x.shape.rank
    return [known if known is not None else size for known, size in zip(x.shape, sizes, strict=True)]
