"""From a raw scan to its label map on its own grid, wherever the model comes from.

predictor = ummkd_tf.runs.loading.load_scan_predictor(["runs/ours-seed0", "runs/ours-seed1"])
result = predictor.predict_scan("scan.nii.gz", modality="mr")
result.labels, result.probabilities, result.affine
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.cases import voxels_checksum
from ummkd_tf.data.intensities import unlike
from ummkd_tf.data.reduction import reduce_image
from ummkd_tf.evaluation.inference import (
    ProbabilityModel,
    Progress,
    largest_components,
)
from ummkd_tf.evaluation.overlap import check_overlap, gaussian_weights
from ummkd_tf.scans.dicom import DicomSeries
from ummkd_tf.scans.geometry import Affine, Grid, Volume, straightened
from ummkd_tf.scans.plausibility import check_machine, implausible
from ummkd_tf.scans.preprocessing import Windows, label_centroid, restore, restored_probabilities
from ummkd_tf.scans.reading import is_dicom_scan, read_volume
from ummkd_tf.tasks import Task

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segmentation:
    """A segmented scan.

    Attributes:
        labels: uint8 class map on the scan's own grid and in its axis order; that of a scan with tilted slices lies on
            an upright grid that covers it, since NIfTI readers such as ITK take no tilted one.
        affine: Voxel index of `labels` to RAS mm [4, 4].
        task: Names the classes.
        prepared_image: What the model saw [rows, columns, slices], on `prepared_grid`.
        prepared_labels: uint8 class map [rows, columns, slices] of the same result, for pictures.
        prepared_probabilities: float32 [rows, columns, slices, classes], background first.
        prepared_grid: On the task's axes and spacing.
        windows: How many windows of the task's size the scan was covered or, for `label_centroid`, searched with.
    """

    labels: NDArray[np.uint8]
    affine: Affine
    task: Task
    prepared_image: NDArray[np.float32]
    prepared_labels: NDArray[np.uint8]
    prepared_probabilities: NDArray[np.float32]
    prepared_grid: Grid
    windows: int

    @property
    def grid(self) -> Grid:
        """Where the voxels of `labels` lie."""
        return Grid(self.affine, self.labels.shape)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """Class probabilities at the voxels of `labels`: float32 [i, j, k, classes]. Takes much memory."""
        parts = restored_probabilities(self.prepared_probabilities, self.prepared_grid, self.grid)
        result = np.empty((*self.labels.shape, self.task.num_classes), np.float32)
        for c, values in enumerate(parts):
            result[..., c] = values
        return result

    @cached_property
    def voxels(self) -> Mapping[str, int]:
        """Voxels of `labels` by class, without background."""
        counts = np.zeros(self.task.num_classes, np.int64)
        for k in range(self.labels.shape[2]):  # by slice, because bincount takes 64 bits for every voxel
            counts += np.bincount(self.labels[:, :, k].ravel(), minlength=len(counts))
        return {name: int(counts[c]) for c, name in enumerate(self.task.class_names) if c}

    @property
    def milliliters(self) -> Mapping[str, float]:
        """Volumes of the same."""
        return {name: count * self.grid.voxel_volume_mm3 / 1000 for name, count in self.voxels.items()}


class ScanPredictor:
    """Segments raw scans with one model or the mean of several.

    A scan larger than the task's window is covered with windows, whose probabilities are averaged with Gaussian
    weights. Where training centres the window on the label (the heart), there are two passes: the window with the most
    foreground gives the centre of a last window, whose result counts.

    Args:
        model: Gives the probabilities of prepared volumes.
        task: The task it was trained for.
        modalities: Those it knows.
        factor: In-plane reduction of the images it sees against the task's grid.
        overlap: As for `Predictor.probabilities`.
        largest_component: Keep the largest connected part of each class alone.
        title: For messages and pictures.
        weights_sha256: `weights_checksum` of each model, so that what others have made can be told from its results.
        intensities: What each modality looked like in training, see `training_intensities`; a scan that looks
            otherwise is warned of.
        seen: Where the models have seen a scan, in words, by its `voxels_checksum`; segmenting one is warned of.
    """

    def __init__(
        self,
        model: ProbabilityModel,
        task: Task,
        modalities: Sequence[str],
        factor: int = 1,
        *,
        overlap: float = 0.0,
        largest_component: bool = False,
        title: str = "",
        weights_sha256: Sequence[str] = (),
        intensities: Mapping[str, Mapping[str, Any]] | None = None,
        seen: Mapping[str, str] | None = None,
    ) -> None:
        check_overlap(overlap)
        self.seen = seen or {}
        self.intensities = intensities or {}
        self.model, self.task, self.modalities, self.factor = model, task, tuple(modalities), factor
        self.overlap, self.largest_component, self.title = overlap, largest_component, title
        self.weights_sha256 = tuple(weights_sha256)

    def predict_scan(self, scan: str | Path | Volume, modality: str, *, progress: Progress = iter) -> Segmentation:
        """Segments one scan.

        Args:
            scan: A NIfTI, NRRD or MetaImage file, a folder with one DICOM series, or a volume in any orientation.
            modality: One of `modalities`.
            progress: Wraps the loop over the batches of each window.

        Raises:
            InputError: An unknown modality, a DICOM series of another one, or a scan that cannot be read or prepared,
                or that no patient can have. What is only odd is a warning.
        """
        if modality not in self.modalities:
            raise InputError(f"modality {modality!r}: the model knows {', '.join(self.modalities)}")
        volume = scan if isinstance(scan, Volume) else _read_checked(scan, modality)
        where = "" if isinstance(scan, Volume) else f"{scan}: "
        try:
            problems, notes = implausible(volume, self.task, modality)
            if problems:
                raise InputError(": ".join(problems[0]))
            for note in notes:
                _LOG.warning("%s%s", where, note)
            if self.seen and (seen := self.seen.get(voxels_checksum(volume))):
                _LOG.warning("%sit was in %s: new scans are segmented less well than such ones", where, seen)
            return self._segment(volume, modality, where, progress)
        except InputError as error:
            raise InputError(f"{where}{error}") from error

    def _segment(self, volume: Volume, modality: str, where: str, progress: Progress) -> Segmentation:
        windows = Windows(volume, self.task, modality)
        if self.task.region == "label_centroid":
            grid, image, probabilities = self._around_the_organs(windows, modality, where, progress)
        else:
            grid, image, probabilities = self._everywhere(windows, modality, progress)
        if unlike(image, self.intensities.get(modality)):
            _LOG.warning(
                "%sthe intensities are unlike those of all %s scans in training: is its modality %s, and its body"
                " region theirs? Look at the result",
                where,
                modality,
                modality,
            )
        if volume.grid.is_tilted:
            _LOG.warning("%sthe slices are tilted: the label map lies on an upright grid that covers the scan", where)
        own = straightened(volume.grid)
        labels, prepared = restore(probabilities, grid, own), probabilities.argmax(axis=-1).astype(np.uint8)
        if self.largest_component:
            labels, prepared = (largest_components(found).astype(np.uint8, copy=False) for found in (labels, prepared))
        return Segmentation(labels, own.affine, self.task, image, prepared, probabilities, grid, len(windows.starts))

    def _predict(self, image: NDArray[np.float32], modality: str, progress: Progress) -> NDArray[np.float32]:
        reduced = reduce_image(image, self.factor)
        return self.model.probabilities(reduced, modality, self.factor, overlap=self.overlap, progress=progress)

    def _everywhere(
        self, windows: Windows, modality: str, progress: Progress
    ) -> tuple[Grid, NDArray[np.float32], NDArray[np.float32]]:
        """Grid, image and probabilities of all windows together."""
        image = windows.image(windows.grid)
        if len(windows.starts) == 1:
            return windows.grid, image, self._predict(image, modality, progress)
        total = np.zeros((*windows.grid.shape, self.task.num_classes), np.float32)
        weights = np.zeros((*windows.grid.shape[:2], 1, 1), np.float32)
        weight = np.outer(*(gaussian_weights(n) for n in self.task.size))[:, :, np.newaxis, np.newaxis]
        for start in windows.starts:
            part = windows.image_in(start)
            here = windows.window(start)
            if part is None:  # nothing was scanned there, or nothing but air
                total[here][..., 0] += weight[..., 0]
            else:
                total[here] += self._predict(part, modality, progress) * weight
            weights[here[:2]] += weight
        total /= weights
        return windows.grid, image, total

    def _around_the_organs(
        self, windows: Windows, modality: str, where: str, progress: Progress
    ) -> tuple[Grid, NDArray[np.float32], NDArray[np.float32]]:
        """Grid, image and probabilities of one window around the organs that the covering windows found."""
        most, center = 0, None
        for start in windows.starts:
            part = windows.image_in(start)
            if part is None:
                continue
            found = self._predict(part, modality, progress).argmax(axis=-1).astype(np.uint8)
            foreground = largest_components((found > 0).astype(np.uint8))
            count = int(np.count_nonzero(foreground))
            if count > most:
                most, center = count, windows.grid.world(label_centroid(foreground) + np.array([*start, 0]))
        if center is None:
            _LOG.warning("%snothing found in any of %d windows", where, len(windows.starts))
            center = windows.grid.world((np.asarray(windows.grid.shape) - 1) / 2)
        grid = windows.grid_around(center)
        image = windows.image(grid)
        return grid, image, self._predict(image, modality, progress)


def _read_checked(path: str | Path, modality: str) -> Volume:
    """Reads a scan that is said to be of a modality.

    What a modality is called decides what can be checked: "ct…", "mr…", "t1…" and the like.

    Raises:
        InputError: As `read_volume`; or a DICOM series whose Modality tag says another machine.
    """
    path = Path(path)
    if not is_dicom_scan(path):
        return read_volume(path)
    series = DicomSeries.open(path)
    check_machine(series.modality, modality, path)
    return series.read()
