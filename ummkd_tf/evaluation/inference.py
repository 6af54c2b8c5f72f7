"""From a prepared volume to class probabilities (docs/reproduction.md#patches and #evaluation)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ummkd_tf.data.reduction import enlarge_in_plane
from ummkd_tf.data.sampling import PATCH_DEPTH, adjacent_slices, chunk, chunk_starts
from ummkd_tf.model.segmenter import UnpairedSegmenter


class Predictor:
    """Runs a model over whole volumes.

    The 3D network sees the authors' test chunks: eight slices each, the last one aligned to the end; where two
    chunks overlap the later one counts. The 2D network sees every slice with its neighbours, the first and last
    slice included (the released code leaves them out).

    Args:
        model: A trained model.
        batch_size: Slices or chunks at a time.
    """

    def __init__(self, model: UnpairedSegmenter, batch_size: int = 4) -> None:
        self.model, self.batch_size = model, batch_size
        self._forward = tf.function(
            lambda images: {m: tf.nn.softmax(tf.cast(x, tf.float32)) for m, x in model(images).items()},
            reduce_retracing=True,
        )

    def probabilities(self, image: NDArray[np.float32], modality: str, factor: int = 1) -> NDArray[np.float32]:
        """Class probabilities of one volume.

        Args:
            image: Prepared volume [rows, columns, slices] at the model's in-plane size.
            modality: The scan's modality.
            factor: In-plane reduction of the model against the task's grid; the result is enlarged by it.

        Returns:
            [rows · factor, columns · factor, slices, classes]; sums to 1 over classes.
        """
        depth = image.shape[2]
        if self.model.network.rank == 2:
            starts = list(range(depth))
            inputs = [adjacent_slices(image, k) for k in starts]
        else:
            starts = chunk_starts(depth)
            inputs = [chunk(image, start)[..., np.newaxis] for start in starts]
        result = np.empty((*image.shape, self.model.num_classes), np.float32)
        for first in range(0, len(starts), self.batch_size):
            batch = np.stack(inputs[first : first + self.batch_size])
            outputs = self._forward({modality: tf.constant(batch)})[modality].numpy()
            for start, output in zip(starts[first:], outputs, strict=False):
                if self.model.network.rank == 2:
                    result[:, :, start] = output
                else:
                    length = min(PATCH_DEPTH, depth - start)
                    result[:, :, start : start + length] = output[:, :, :length]
        return enlarge_in_plane(result, factor)
