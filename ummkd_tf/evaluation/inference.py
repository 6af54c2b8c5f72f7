"""From a prepared volume to class probabilities (docs/reproduction.md#patches and #evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy import ndimage

from ummkd_tf.data.reduction import enlarge_in_plane
from ummkd_tf.data.sampling import PATCH_DEPTH, adjacent_slices, chunk, chunk_starts
from ummkd_tf.evaluation.overlap import check_overlap, gaussian_weights
from ummkd_tf.model.segmenter import UnpairedModel

Progress = Callable[[Sequence[int]], Iterable[int]]
"""Wraps the loop over a volume's batches, e.g. with a progress bar."""


class ProbabilityModel(Protocol):
    """What predicts whole volumes: a `Predictor`, several of them, or a test's stand-in."""

    def probabilities(
        self,
        image: NDArray[np.float32],
        modality: str,
        factor: int = 1,
        *,
        overlap: float = 0.0,
        progress: Progress = iter,
    ) -> NDArray[np.float32]:
        """As `Predictor.probabilities`."""


def _probabilities(model: UnpairedModel, images: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {m: tf.nn.softmax(tf.cast(x, tf.float32)) for m, x in model(images).items()}


class Predictor:
    """Runs a model over whole volumes.

    The 3D network sees the authors' test chunks: eight slices each, the last one aligned to the end; where two
    chunks overlap the later one counts. The 2D network sees every slice with its neighbours, the first and last
    slice included (the released code leaves them out).

    Args:
        model: A trained model.
        batch_size: Slices or chunks at a time.
    """

    def __init__(self, model: UnpairedModel, batch_size: int = 4) -> None:
        self.model, self.batch_size = model, batch_size
        # A partial, because TensorFlow counts the traces of a lambda in all predictors together, and warns of them.
        self._forward = tf.function(partial(_probabilities, model), reduce_retracing=True)

    def probabilities(
        self,
        image: NDArray[np.float32],
        modality: str,
        factor: int = 1,
        *,
        overlap: float = 0.0,
        progress: Progress = iter,
    ) -> NDArray[np.float32]:
        """Class probabilities of one volume.

        Args:
            image: Prepared volume [rows, columns, slices] at the model's in-plane size.
            modality: The scan's modality.
            factor: In-plane reduction of the model against the task's grid; the result is enlarged by it.
            overlap: Share, 0 to 0.875, of a chunk of the 3D network that the next one sees again; their probabilities
                are averaged with Gaussian weights along the slices. 0 is the authors' protocol. The 2D network, which
                predicts each slice once, has no chunks.
            progress: Wraps the loop over batches.

        Returns:
            [rows · factor, columns · factor, slices, classes]; sums to 1 over classes.

        Raises:
            InputError: No such overlap.
        """
        check_overlap(overlap)
        result = np.zeros((*image.shape, self.model.num_classes), np.float32)
        if self.model.network.rank == 2:
            starts = list(range(image.shape[2]))
            for start, output in self._outputs(starts, lambda k: adjacent_slices(image, k), modality, progress):
                result[:, :, start] = output
            return enlarge_in_plane(result, factor)
        starts = chunk_starts(image.shape[2], max(1, round(PATCH_DEPTH * (1 - overlap))))
        weights = gaussian_weights(PATCH_DEPTH)[:, np.newaxis] if overlap else None
        total = np.zeros((image.shape[2], 1), np.float32)
        for start, output in self._outputs(starts, lambda k: chunk(image, k)[..., np.newaxis], modality, progress):
            here = slice(start, start + min(PATCH_DEPTH, image.shape[2] - start))
            length = here.stop - here.start
            if weights is None:
                result[:, :, here] = output[:, :, :length]
            else:
                result[:, :, here] += output[:, :, :length] * weights[:length]
                total[here] += weights[:length]
        if weights is not None:
            result /= total
        return enlarge_in_plane(result, factor)

    def _outputs(
        self, starts: Sequence[int], network_input: Callable[[int], NDArray], modality: str, progress: Progress
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """First slice and probabilities of each slice or chunk."""
        for first in progress(range(0, len(starts), self.batch_size)):
            batch = starts[first : first + self.batch_size]
            images = tf.constant(np.stack([network_input(start) for start in batch]))
            yield from zip(batch, self._forward({modality: images})[modality].numpy(), strict=True)


class Ensemble:
    """The mean of several models' probabilities, as of runs with several seeds or folds.

    Args:
        members: At least one.
    """

    def __init__(self, members: Sequence[ProbabilityModel]) -> None:
        self.members = tuple(members)

    def probabilities(
        self,
        image: NDArray[np.float32],
        modality: str,
        factor: int = 1,
        *,
        overlap: float = 0.0,
        progress: Progress = iter,
    ) -> NDArray[np.float32]:
        """As `Predictor.probabilities`."""
        each = (m.probabilities(image, modality, factor, overlap=overlap, progress=progress) for m in self.members)
        total = next(each)
        for more in each:
            total += more
        return total / np.float32(len(self.members))


def largest_components(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    """The class map with the largest connected part of each class alone; the rest is 0.

    Args:
        labels: Class map, 2D or 3D. Neighbours share a side or a face.
    """
    result = np.zeros_like(labels)
    for c, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            parts, _ = ndimage.label(labels[box] == c)
            largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
            result[box][parts == largest] = c
    return result
