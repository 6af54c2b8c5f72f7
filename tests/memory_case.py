"""Stands in for a `StoredCase`, without a file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.data.cases import labelled_slices


class MemoryCase:
    """A case whose slices come from memory.

    Args:
        image: float32 [rows, columns, slices].
        label: uint8 class map of the same shape.
        case_id: Its name.
    """

    def __init__(self, image: NDArray[np.float32], label: NDArray[np.uint8], case_id: str = "a") -> None:
        self.image, self.label, self.case_id, self.depth = image, label, case_id, image.shape[2]
        self.classes, self.labelled = np.unique(label).tolist(), labelled_slices(label)

    def slices(self, image: list[int], label: list[int]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """These slices of the image, and those of the class map."""
        return self.image[:, :, image], self.label[:, :, label]
