"""From a scan to the network's grid and back (Sec. IV-A; docs/reproduction.md#preparation).

Forward: reorient to the task's axes → crop to the body, or find the organs → resample image and label *once* onto the
task's grid around it → clip intensities → z-score over the volume. Backward: class probabilities on the task's grid →
label map on the scan's own grid.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ummkd_tf.common.errors import InputError
from ummkd_tf.scans.geometry import (
    CORNERS,
    ROUNDING_MM,
    Grid,
    Volume,
    around,
    blocks,
    bounding_box,
    crop,
    part,
    reorient,
    resample,
    same_geometry,
    straightened,
    window,
)
from ummkd_tf.scans.plausibility import LARGEST_MM
from ummkd_tf.tasks import Clip, Task

_LOG = logging.getLogger(__name__)

# Of the preparation: raise it whenever a scan would be prepared differently, so that cases are prepared again
VERSION = 6

# Voxels of a label map restored at a time, because the probabilities of all classes take many times its memory
_RESTORED_VOXELS = 2**24
_BODY_SHARE = 0.1  # of the body's typical intensity above that of air; what is brighter is taken for body
_LIMB = 0.25  # of the largest connected part; another part as large as this belongs to the body
_BODY_MARGIN_MM = 10.0  # for skin and noise at the body's edge
_LOOKED_AT_MM = (3.0, 3.0, 8.0)  # the body is searched on a grid of about this spacing
# Of voxels with equal occupancy, a smoothed score decides: its sigma in the plane (voxels) and its small weight.
_TIE_SIGMA, _TIE_WEIGHT = 3.0, 0.1


@dataclass(frozen=True)
class Prepared:
    """A scan on the task's grid.

    Attributes:
        image: float32 [rows, columns, slices], zero mean and unit variance over the scanned voxels.
        label: uint8 class map of the same shape, or None.
        grid: Where the prepared voxels lie.
        original: Where the scan's own voxels lie, in its own axis order.
        original_label: uint8 class map on `original`, or None.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    grid: Grid
    original: Grid
    original_label: NDArray[np.uint8] | None


def prepare_scan(image: Volume, label: Volume | None, task: Task, modality: str) -> Prepared:
    """Brings a scan (and its class map) onto the task's grid.

    Args:
        image: The scan in any orientation.
        label: Class map (0..C-1) on the same grid, or None for a scan to be predicted. No labelled voxel is cropped
            away: where the body's box leaves some out, it is enlarged, and a warning says so.
        task: Row of the task table.
        modality: Chooses the intensity range.

    Raises:
        InputError: Image and label differ in shape or geometry; a constant image; no labelled organ.
    """
    if label is not None:
        difference = same_geometry(image.grid, label.grid)
        if difference:
            raise InputError(f"label and image do not fit: the label has {difference}; use the image's own label")
        # Both affines may differ by rounding; with the same one, image and label are turned alike.
        label = Volume(label.array, image.affine)
    turned = None if label is None else reorient(label, task.axes)
    oriented = _without_margins(reorient(image, task.axes), turned, task, modality)
    center = _middle(oriented)
    if task.region == "label_centroid" and turned is not None:
        center = label_centroid(turned.array)
    grid = task_grid(oriented.grid, center, task)
    return Prepared(
        image=_on_grid(oriented, grid, task.clip_for(modality)),
        label=None if label is None else resample_label(label, grid, task.num_classes),
        grid=grid,
        original=image.grid,
        original_label=None if label is None else label.array.astype(np.uint8),
    )


def _without_margins(oriented: Volume, label: Volume | None, task: Task, modality: str) -> Volume:
    """The part of a scan (on the task's axes) that is used: for the region "body" the body's box, with all labels in
    it."""
    if task.region != "body":
        return oriented
    box = body_box(oriented, task.clip_for(modality))
    if label is not None:
        box, outside = _with_all_labels(box, label.array)
        if outside:
            _LOG.warning(
                "%s labelled voxels lie outside of what looks like the body, which was enlarged: does the label belong "
                "to this image?",
                outside,
            )
    return crop(oriented, box)


def _middle(volume: Volume) -> NDArray[np.float64]:
    return (np.asarray(volume.array.shape) - 1) / 2


def _on_grid(oriented: Volume, grid: Grid, clip: Clip) -> NDArray[np.float32]:
    """The scan on a grid of the task, clipped and as a z-score."""
    values = resample(oriented, grid, "linear", outside=np.nan)
    scanned = ~np.isnan(values)
    if not scanned.any():
        raise InputError("the image has no voxel inside the task's window: check its geometry")
    return normalize(values, scanned, clip)


class Windows:
    """A scan to be predicted, on windows of the task's size that cover all of it (the body, for the region "body").

    Each window is prepared as a training scan is. Where the scan fits into one window, it is the one of `prepare_scan`;
    otherwise windows overlap by half or more.

    Args:
        image: The scan in any orientation.
        task: Says the window's size and spacing.
        modality: Chooses the intensity range.

    Attributes:
        grid: All windows together; its rows and columns are the task's, or more.
        starts: First row and column of each window on `grid`.

    Raises:
        InputError: The scan is longer than any patient.
    """

    def __init__(self, image: Volume, task: Task, modality: str) -> None:
        self._task, self._clip = task, task.clip_for(modality)
        self._scan = _without_margins(reorient(image, task.axes), None, task, modality)
        upright = straightened(self._scan.grid)
        extent = np.asarray(upright.shape[:2]) * upright.spacing_mm[:2] / task.spacing_mm[:2]
        rows, columns = (max(n, math.ceil(e - 1e-3)) for n, e in zip(task.size, extent, strict=True))
        self.grid = task_grid(self._scan.grid, _middle(self._scan), task, (rows, columns))
        firsts = [_window_starts(total, size) for total, size in zip((rows, columns), task.size, strict=True)]
        self.starts = [(row, column) for row in firsts[0] for column in firsts[1]]

    def window(self, start: tuple[int, int]) -> tuple[slice, ...]:
        """Where on `grid` a window lies."""
        return (*(slice(s, s + n) for s, n in zip(start, self._task.size, strict=True)), slice(0, self.grid.shape[2]))

    def grid_around(self, world: NDArray[np.float64]) -> Grid:
        """The grid of the window around a point (RAS mm), as around a label's centroid in training."""
        return task_grid(self._scan.grid, self._scan.grid.index(world), self._task)

    def image(self, grid: Grid) -> NDArray[np.float32]:
        """The scan on a grid with the task's axes and spacing, as `Prepared.image`.

        Raises:
            InputError: No scanned voxel, or all scanned voxels have one value.
        """
        return _on_grid(self._scan, grid, self._clip)

    def image_in(self, start: tuple[int, int]) -> NDArray[np.float32] | None:
        """The scan in one window, prepared as if it were alone; None where there is nothing but one value."""
        try:
            return self.image(part(self.grid, self.window(start)))
        except InputError:
            return None


def _window_starts(total: int, size: int) -> list[int]:
    """First rows (or columns) of the fewest windows that cover a range evenly and overlap by half or more."""
    steps = math.ceil((total - size) / (size / 2))
    return [round((total - size) * step / steps) for step in range(steps + 1)] if steps else [0]


def clip_intensity(values: NDArray, clip: Clip) -> NDArray[np.float32]:
    """Limits values, an array of any shape, to a range in the image's unit or in percentiles of `values`."""
    low, high = (clip.low, clip.high) if clip.unit == "value" else np.percentile(values, (clip.low, clip.high))
    return np.clip(values, low, high, dtype=np.float32)


def normalize(values: NDArray, scanned: NDArray[np.bool_], clip: Clip) -> NDArray[np.float32]:
    """Clips, then subtracts the mean and divides by the standard deviation of the scanned voxels.

    Voxels outside the scan take the darkest value, as black margins do.

    Args:
        values: Intensities, of any shape.
        scanned: Where the scan has voxels; the same shape.
        clip: The range.

    Raises:
        InputError: All scanned voxels have one value.
    """
    inside = clip_intensity(values[scanned], clip)
    mean, deviation = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
    if deviation == 0:
        raise InputError(f"every voxel has the value {mean:g} after clipping: expected an image with contrast")
    inside -= mean
    inside /= deviation
    result = np.full(values.shape, inside.min(), np.float32)
    result[scanned] = inside
    return result


def resample_label(label: Volume, grid: Grid, num_classes: int) -> NDArray[np.uint8]:
    """Class map at the voxels of another grid; never invents a label, and keeps the volume of a class that is thick
    against the grid's slices. Of a thinner one, what lies between two slices is lost.

    Our choice, because neither source says how: each class's indicator is interpolated linearly, and the class with the
    largest score wins. The score is the interpolated value plus a bias per class, chosen so that a class wins as many
    voxels as its interpolated values sum to. Without the bias the nearest slice wins, and where slices of 7.7 mm meet
    slices of 8 mm an organ loses or gains up to a whole slice (9 % of a spleen).

    Args:
        label: Class map (0..C-1).
        grid: Where classes are wanted.
        num_classes: C.
    """
    classes = np.zeros(grid.shape, np.uint8)
    box = bounding_box(label.array > 0)
    if box is None:
        return classes
    # One voxel around all labels, where the indicators have faded to zero.
    first, last = _ends(box)
    labelled = crop(label, window(label.grid, first - 1, last + 1))
    target = _covering(box, label.grid, grid)
    wanted = part(grid, target)
    if 0 not in wanted.shape:
        indicators = [Volume((labelled.array == c).astype(np.float32), labelled.affine) for c in range(1, num_classes)]
        classes[target] = classes_of_same_volume(np.stack([resample(i, wanted, "linear") for i in indicators]))
    return classes


def classes_of_same_volume(occupancy: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Class map in which each class has as many voxels as its occupancies sum to.

    Args:
        occupancy: Share of each voxel that belongs to class 1, 2, …: [classes, rows, columns, slices]; what they leave
            is background. A class is never given where its occupancy is 0.
    """
    score = np.concatenate([1 - occupancy.sum(axis=0, keepdims=True), occupancy])
    # Between two slices, many voxels have the same occupancy. A smoothed score then prefers those nearer to the inside.
    score += _TIE_WEIGHT * ndimage.gaussian_filter(score, (0, _TIE_SIGMA, _TIE_SIGMA, 0))
    covered = occupancy.any(axis=0)
    occupancy, score = occupancy[:, covered], score[:, covered]
    score[1:][occupancy == 0] = -np.inf
    bias = np.zeros((len(score), 1), np.float32)
    for c in 2 * list(range(1, len(score))):  # twice, because touching classes take voxels from one another
        here = occupancy[c - 1] > 0
        rivals = np.delete(score[:, here] + bias, c, axis=0).max(axis=0)
        lead = score[c, here] - rivals
        wanted = round(float(occupancy[c - 1].sum(dtype=np.float64)))
        if 0 < wanted < lead.size:
            bias[c] = -np.partition(lead, (-wanted - 1, -wanted))[[-wanted - 1, -wanted]].mean()
    classes = np.zeros(covered.shape, np.uint8)
    classes[covered] = np.argmax(score + bias, axis=0)
    return classes


def body_box(scan: Volume, clip: Clip) -> tuple[slice, ...]:
    """In-plane box of the body (`find_body`) with a margin of 10 mm, over the whole slice range.

    What lies outside does not enter the z-score, because the amount of air around a patient would shift all
    intensities.

    Args:
        scan: Image [rows, columns, slices].
        clip: The modality's intensity range.
    """
    spacing = np.asarray(scan.grid.spacing_mm)
    steps = np.maximum(1, np.asarray(_LOOKED_AT_MM) // spacing).astype(int)
    found = find_body(clip_intensity(scan.array[tuple(slice(None, None, step) for step in steps)], clip))
    margin = np.ceil(_BODY_MARGIN_MM / spacing).astype(int) + steps - 1
    rows, columns = (
        slice(max(0, side.start * step - more), min(size, (side.stop - 1) * step + 1 + more))
        for side, step, more, size in zip(found[:2], steps, margin, scan.array.shape, strict=False)
    )
    return rows, columns, slice(None)


def find_body(values: NDArray[np.float32]) -> tuple[slice, ...]:
    """Box of the body.

    Our choice, because the paper says only "excluding the black margins": voxels brighter than air by a tenth of what
    the body is (`_body_level`), of their connected parts the largest and all that have a quarter of its voxels or more,
    the box around these. So both legs are kept, and table and cables left out: in 24 CT of BTCV and 15 MR of CHAOS, the
    second largest part has at most 0.03 of the largest. A tenth of the intensity range instead of the body would cut
    off fat and liver where fluid is fifteen times as bright.

    Args:
        values: Clipped image [rows, columns, slices].
    """
    low = float(values.min())
    if float(values.max()) == low:
        return tuple(slice(0, size) for size in values.shape)
    body = _body_level(values) - low
    # Noise makes air brighter than the minimum. Where a picture has hardly any air, its darkest tenth is tissue: hence
    # min().
    air = min(float(np.percentile(values, 10)) - low, _BODY_SHARE * body)
    parts, _ = ndimage.label(values > low + air + _BODY_SHARE * (body - air))
    voxels = np.bincount(parts.ravel())[1:]
    boxes = np.array(ndimage.find_objects(parts), object)[voxels >= _LIMB * voxels.max()]
    return tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in boxes.T)


def _body_level(values: NDArray[np.float32]) -> float:
    """Typical intensity of the body: the median of all voxels that are brighter than a quarter of this median."""
    low, level = float(values.min()), float(values.mean(dtype=np.float64))
    for _ in range(10):  # settles after two or three
        level, before = float(np.median(values[values > low + (level - low) / 4])), level
        if level == before:
            break
    return level


def _with_all_labels(box: tuple[slice, ...], classes: NDArray) -> tuple[tuple[slice, ...], int]:
    """The box, large enough for all foreground voxels, and how many it left out."""
    outside = int(np.count_nonzero(classes)) - int(np.count_nonzero(classes[box]))
    if not outside:
        return box, 0
    labelled = bounding_box(classes > 0)
    assert labelled is not None  # a voxel lies outside of the box
    sides = [slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(box[:2], labelled[:2], strict=True)]
    return (*sides, box[2]), outside


def label_centroid(classes: NDArray) -> NDArray[np.float64]:
    """Centre of mass index `[row, column, slice]` of all foreground voxels.

    Raises:
        InputError: No foreground voxel.
    """
    foreground = classes > 0
    along = [foreground.sum(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    if not along[0].any():
        raise InputError("the label map has no foreground voxel: the organs cannot be located; check the label file")
    return np.array([np.average(np.arange(len(counts)), weights=counts) for counts in along])


def task_grid(scan: Grid, center: NDArray[np.float64], task: Task, size: tuple[int, int] | None = None) -> Grid:
    """The task's grid over a scan that already has the task's axes.

    In the plane: `task.size` voxels of the task's spacing around `center` (cropping or padding as needed), or `size`.
    Across: the number of slices of the task's spacing that comes nearest to the scan's length, centred on it. No more
    than a quarter of such a slice is left over at either end; `restore` gives it the class of its neighbour. Over a
    tilted scan the task's grid is upright: a network that has seen upright patients, and distances in mm, need it.

    Raises:
        InputError: The scan is longer than any patient.
    """
    if scan.is_tilted:
        upright = straightened(scan)
        scan, center = upright, upright.index(scan.world(center))
    through_mm = scan.shape[2] * scan.spacing_mm[2]
    if through_mm > LARGEST_MM:  # a wrong header would otherwise fill the memory with empty slices
        raise InputError(
            f"the scan is {through_mm:.0f} mm long: expected at most {LARGEST_MM:.0f}; check its header's spacing"
        )
    shape = (*(size or task.size), max(1, round(through_mm / task.spacing_mm[2])))
    middle = np.array([center[0], center[1], (scan.shape[2] - 1) / 2])
    axes = scan.affine[:3, :3] / scan.spacing_mm * task.spacing_mm
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = scan.world(middle) - axes @ ((np.asarray(shape) - 1) / 2)
    return Grid(affine, shape)


def restore(probabilities: NDArray, grid: Grid, original: Grid) -> NDArray[np.uint8]:
    """Class map on the scan's own grid from class probabilities on the task's grid.

    Each class's probability is interpolated linearly and the largest wins; beyond the task's window is background.

    Args:
        probabilities: [rows, columns, slices, classes], background first.
        grid: The task's grid.
        original: The scan's own grid.

    Returns:
        uint8 array of `original.shape`, in the scan's own axis order.
    """
    labels = np.zeros(original.shape, np.uint8)
    # Only voxels near a class that is more likely than background can get a label: leave out the rest, to save time.
    found = np.zeros(grid.shape, bool)
    for c in range(1, probabilities.shape[-1]):
        found |= probabilities[..., c] > probabilities[..., 0]
    box = bounding_box(found)
    if box is None:
        return labels
    here = _covering(box, grid, original)
    own = part(original, here)
    if 0 in own.shape:
        return labels
    for block in blocks(own, math.ceil(math.prod(own.shape) / _RESTORED_VOXELS)):
        labels[here][block] = _classes(probabilities, grid, part(own, block))
    return labels


def _ends(box: tuple[slice, ...]) -> NDArray[np.int64]:
    """First indices of a box, and those behind its last, [2, 3]."""
    return np.array([[side.start, side.stop] for side in box]).T


def _covering(box: tuple[slice, ...], grid: Grid, other: Grid) -> tuple[slice, ...]:
    """The part of another grid that holds a box of this one and one voxel around it."""
    first, last = _ends(box)
    corners = other.index(grid.world(np.where(CORNERS, last, first - 1)))
    return window(other, np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0)) + 1)


def _classes(probabilities: NDArray, grid: Grid, wanted: Grid) -> NDArray[np.uint8]:
    labels = np.zeros(wanted.shape, np.uint8)
    best = np.ones(wanted.shape, np.float32)
    for c, values in enumerate(restored_probabilities(probabilities, grid, wanted)):
        wins = values > best if c else slice(None)
        labels[wins] = c
        best[wins] = values[wins]
    return labels


def restored_probabilities(probabilities: NDArray, grid: Grid, wanted: Grid) -> Iterator[NDArray[np.float32]]:
    """Each class's probability at the voxels of another grid, the background's first; beyond the window, background.

    What `task_grid` leaves over at the ends of a scan has the probabilities of the first and last slice.
    """
    ends = grid.index(wanted.world(CORNERS * np.asarray(wanted.shape) - 0.5))[:, 2]
    left_over = max(-0.5 - ends.min(), ends.max() - (grid.shape[2] - 0.5))
    # A scan's header and its own grid may differ by rounding, which turns the ends against this grid.
    added = 1 if 0 < left_over < 0.25 + ROUNDING_MM / grid.spacing_mm[2] else 0  # slices at either end
    affine = grid.affine.copy()
    affine[:3, 3] -= added * affine[:3, 2]
    for c in range(probabilities.shape[-1]):
        values = np.pad(probabilities[..., c], ((0, 0), (0, 0), (added, added)), mode="edge")
        source = around(Volume(values, affine), wanted)
        outside = 0.0 if c else 1.0
        if source.array.size:
            yield resample(source, wanted, "linear", outside)
        else:
            yield np.full(wanted.shape, outside, np.float32)
