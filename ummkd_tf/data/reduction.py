"""Coarser rows and columns for the reduced presets, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def reduce_image(image: NDArray, factor: int) -> NDArray[np.float32]:
    """Makes rows and columns of an image [rows, columns, slices] `factor` times coarser, for the reduced presets.

    Each voxel is the mean of its block of `factor` × `factor` voxels, so the image stays in place.
    """
    if factor == 1:
        return image
    # Added up in one order, so that a slice alone has the same bits as in its volume; NumPy's mean does not.
    starts = [(row, column) for row in range(factor) for column in range(factor)]
    total = np.zeros([n // factor for n in image.shape[:2]] + [*image.shape[2:]], np.float32)
    for row, column in starts:
        total += image[row::factor, column::factor]
    return total / np.float32(len(starts))


def reduce_label(label: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Does to a class map what `reduce_image` does to its image: the most frequent class of each block.

    At a tie the lower class; no label is invented.
    """
    if factor == 1:
        return label
    counts = [_blocks(label == c, factor).sum(axis=(1, 3)) for c in range(int(label.max()) + 1)]
    return np.argmax(counts, axis=0).astype(np.uint8)


def _blocks(volume: NDArray, factor: int) -> NDArray:
    rows, columns, slices = volume.shape
    return volume.reshape(rows // factor, factor, columns // factor, factor, slices)


def enlarge_in_plane(values: NDArray, factor: int) -> NDArray[np.float32]:
    """Undoes `reduce_image` for `[rows, columns, slices, ...]`: linear interpolation between block centres."""
    if factor == 1:
        return values
    zoom = (factor, factor) + (1,) * (values.ndim - 2)
    return ndimage.zoom(values, zoom, order=1, mode="nearest", grid_mode=True)
