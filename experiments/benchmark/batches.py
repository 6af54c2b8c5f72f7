"""The random batch that every contender trains on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ummkd_tf.data.sampling import Batch

NUM_CLASSES, DEPTH = 5, 8


def random_batch(network: str, batch_size: int, size: int, modalities: Sequence[str]) -> Batch:
    """Images of noise and random class maps.

    Args:
        network: "dilated2d" or "unet3d".
        batch_size: Examples per modality.
        size: Rows and columns; the 3D network's depth is 8.
        modalities: Names.
    """
    random = np.random.default_rng(0)
    *space, channels = (size, size, 3) if network == "dilated2d" else (size, size, DEPTH, 1)
    images = {m: random.standard_normal((batch_size, *space, channels), dtype=np.float32) for m in modalities}
    labels = {m: random.integers(0, NUM_CLASSES, (batch_size, *space), dtype=np.uint8) for m in modalities}
    return images, labels
