"""Windows and chunks that overlap: how much they may, and how their probabilities are weighted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError

MOST_OVERLAP = 0.875
"""The largest overlap of neighbouring chunks of eight slices: a new chunk begins at every slice."""

_SIGMA = 1 / 8  # of a window's length; the Gaussian weights of nnU-Net


def check_overlap(overlap: float) -> None:
    """Refuses a share of overlap that no chunk can have.

    Raises:
        InputError: Says what is possible.
    """
    if not 0 <= overlap <= MOST_OVERLAP:
        raise InputError(f"overlap {overlap:g}: expected a share from 0 to {MOST_OVERLAP}")


def gaussian_weights(length: int) -> NDArray[np.float32]:
    """Weights of a window's voxels along one axis, 1 in the middle, as in nnU-Net: sigma is an eighth of the window."""
    distance = np.arange(length) - (length - 1) / 2
    return np.exp(-0.5 * (distance / (_SIGMA * length)) ** 2).astype(np.float32)
