"""Segmentation metrics: Dice and surface distances in millimetres, with every empty mask accounted for.

Source: Sec. IV-C; docs/reproduction.md#evaluation. Numpy and scipy only; arrays may have any axis order as long as
`spacing_mm` has the same one. The rule for empty masks, everywhere in this file:

| prediction | reference | status   | Dice, surface Dice | distances                          |
|------------|-----------|----------|--------------------|------------------------------------|
| filled     | filled    | ok       | 0…1                | between the two surfaces           |
| empty      | filled    | missed   | 0                  | image diagonal, per surface voxel  |
| filled     | empty     | spurious | 0                  | image diagonal, per surface voxel  |
| empty      | empty     | absent   | NaN                | NaN, no surface voxel              |

The image diagonal is `norm(shape * spacing_mm)`, from one outer corner of the image to the opposite one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from ummkd_tf.common.errors import InputError

Status = Literal["ok", "missed", "spurious", "absent"]
Box = tuple[slice, ...]

# (prediction filled, reference filled) -> status
_STATUS: dict[tuple[bool, bool], Status] = {
    (True, True): "ok",
    (False, True): "missed",
    (True, False): "spurious",
    (False, False): "absent",
}

# Above this share of surface voxels in the joint bounding box a distance transform is faster than a k-d tree.
# Organs stay below it, where the tree is 3 to 20 times faster; a noisy prediction exceeds it, and there
# the tree can be 10 times slower. Measured on one core; both are exact.
_TREE_MAX_SURFACE_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces, in mm, both directions pooled.

    Attributes:
        hausdorff_mm: Largest distance, >= 0.
        hausdorff95_mm: 95th percentile (linear interpolation) of the pooled distances, as MedPy's `hd95`.
        average_mm: Mean of the pooled distances (ASSD), as MedPy's `assd` from version 0.5.2 on.
        surface_dice: Share of surface voxels, 0…1, within the tolerance of the other surface.
        distances_mm: float64 `[surface voxels]`: from each surface voxel of the prediction to the nearest
            of the reference, then the reverse, each in C order of the voxels.
    """

    hausdorff_mm: float
    hausdorff95_mm: float
    average_mm: float
    surface_dice: float
    distances_mm: NDArray[np.float64]


class ClassMetrics(TypedDict):
    """What `case_metrics` says of one class in one case; plain Python values, ready for JSON except NaN."""

    status: Status
    dice: float
    hausdorff_mm: float
    hausdorff95_mm: float
    average_mm: float
    surface_dice: float
    surface_points: int
    surface_distance_sum_mm: float
    surface_distance_square_sum_mm2: float


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation over `count` values; `excluded` more were NaN."""

    mean: float
    std: float
    count: int
    excluded: int


def dice_coefficient(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Returns the Dice coefficient `2 |P ∩ R| / (|P| + |R|)`, 0…1 (tables print it in %).

    Args:
        prediction: Binary array (bool, or integers 0 and 1) of any shape.
        reference: Binary array of the same shape.

    Returns:
        0 if exactly one mask is empty, NaN if both are.

    Raises:
        InputError: If the shapes differ or an array is not binary.
    """
    return _dice(*_mask_pair(prediction, reference))


def surface_distances(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing_mm: Sequence[float] | NDArray[Any],
    tolerance_mm: float | None = None,
) -> SurfaceDistances:
    """Measures how far two surfaces lie apart, in mm.

    The surface of a mask is its foreground voxels that a 6-neighbour erosion (4-neighbour in 2D) removes;
    beyond the image edge there is background. Distances run between voxel centres.

    Args:
        prediction: Binary array (bool, or integers 0 and 1), 2D or 3D.
        reference: Binary array of the same shape.
        spacing_mm: Voxel size along each array axis, in mm.
        tolerance_mm: Distance up to and including which a surface voxel counts as matched in
            `surface_dice`. Default: one voxel, taken as the smallest spacing; our choice, because with
            Task-2's 1.5×1.5×8 mm voxels the largest would forgive five voxels in the plane. A surface that
            is one thick slice off therefore counts as unmatched.

    Returns:
        The distances. If one mask is empty, each distance is the image diagonal, one for every surface
        voxel of the other mask, and `surface_dice` is 0. If both are, all is NaN and `distances_mm` empty.

    Raises:
        InputError: If shapes differ, the rank is not 2 or 3, an array is empty or not binary, or the spacing
            or tolerance is not usable.
    """
    masks = _mask_pair(prediction, reference)
    spacing = _checked_spacing(spacing_mm, masks[0].shape)
    tolerance = _one_voxel_mm(spacing) if tolerance_mm is None else float(tolerance_mm)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(
            f"tolerance_mm is not a distance: expected a finite number >= 0, got {tolerance_mm}; give it in mm"
        )
    prediction_mask, reference_mask = masks
    (box,) = _joint_boxes(prediction_mask.view(np.uint8), reference_mask.view(np.uint8), 1)
    diagonal_mm = _diagonal_mm(prediction_mask.shape, spacing)
    return _compare_surfaces(prediction_mask[box], reference_mask[box], spacing, diagonal_mm, tolerance)


def case_metrics(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing_mm: Sequence[float] | NDArray[Any],
    class_names: Sequence[str],
) -> dict[str, ClassMetrics]:
    """Evaluates one case, class by class.

    Args:
        prediction: Integer label map, 2D or 3D, values 0…C-1; 0 is background.
        reference: Integer label map of the same shape.
        spacing_mm: Voxel size along each array axis, in mm.
        class_names: Names of the classes 1…C-1, in this order.

    Returns:
        Class name -> its metrics, in the order of `class_names`. `surface_points` and the two sums describe
        `SurfaceDistances.distances_mm`, so that `pooled_surface_distance` needs no arrays.

    Raises:
        InputError: If shapes differ, the rank is not 2 or 3, an array is empty, not integer or has a value
            without a name, the spacing is not usable, or the names are not distinct.
    """
    names = _checked_names(class_names)
    predicted, expected = np.asarray(prediction), np.asarray(reference)
    _check_same_shape(predicted, expected)
    predicted = _checked_label_map(predicted, "prediction", names)
    expected = _checked_label_map(expected, "reference", names)
    spacing = _checked_spacing(spacing_mm, predicted.shape)
    diagonal_mm = _diagonal_mm(predicted.shape, spacing)
    boxes = _joint_boxes(predicted, expected, len(names))
    return {
        name: _class_metrics(predicted[box] == label, expected[box] == label, spacing, diagonal_mm)
        for label, (name, box) in enumerate(zip(names, boxes, strict=True), start=1)
    }


def summarize(values: Iterable[float | None]) -> Summary:
    """Summarizes one metric over cases, as the tables' "mean ± std".

    Args:
        values: One number per case. NaN, or None as JSON brings it back, is left out and counted.

    Returns:
        The mean and the population standard deviation (ddof 0, as the authors' test programs print it), both NaN if no
        value is left.

    Raises:
        InputError: If a value is infinite.
    """
    array = np.array(list(values), dtype=np.float64)
    if np.isinf(array).any():
        raise InputError(
            "cannot summarize an infinite value: expected finite numbers or NaN, "
            f"got {array.tolist()}; mark a missing value as NaN"
        )
    kept = array[~np.isnan(array)]
    mean, std = (float(kept.mean()), float(kept.std())) if kept.size else (math.nan, math.nan)
    return Summary(mean=mean, std=std, count=kept.size, excluded=array.size - kept.size)


def pooled_surface_distance(records: Iterable[Mapping[str, Any]]) -> tuple[float, float, int]:
    """Pools the surface distances of many cases (or classes) over all their surface voxels.

    This is the "paper-comparable (pooled surface distance)", an assumption about what the paper prints as Hausdorff
    distance (docs/reproduction.md#pooled-distance). A missed or spurious class weighs in with the image diagonal at
    each surface voxel; filter the records by `status` for the figure without them.

    Args:
        records: Values of `case_metrics`, also after a round trip through JSON.

    Returns:
        Mean in mm, population standard deviation in mm and number of surface voxels; (NaN, NaN, 0) if none.
    """
    pool = list(records)
    points = sum(record["surface_points"] for record in pool)
    if not points:
        return math.nan, math.nan, 0
    mean = math.fsum(record["surface_distance_sum_mm"] for record in pool) / points
    mean_square = math.fsum(record["surface_distance_square_sum_mm2"] for record in pool) / points
    # Rounding can leave a variance of zero slightly negative.
    return mean, math.sqrt(max(mean_square - mean**2, 0.0)), points


def _class_metrics(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: NDArray[np.float64],
    diagonal_mm: float,
) -> ClassMetrics:
    surfaces = _compare_surfaces(prediction, reference, spacing, diagonal_mm, _one_voxel_mm(spacing))
    distances = surfaces.distances_mm
    return {
        "status": _STATUS[bool(prediction.any()), bool(reference.any())],
        "dice": _dice(prediction, reference),
        "hausdorff_mm": surfaces.hausdorff_mm,
        "hausdorff95_mm": surfaces.hausdorff95_mm,
        "average_mm": surfaces.average_mm,
        "surface_dice": surfaces.surface_dice,
        "surface_points": distances.size,
        "surface_distance_sum_mm": float(distances.sum()),
        "surface_distance_square_sum_mm2": float(distances @ distances),
    }


def _dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return 2.0 * np.count_nonzero(prediction & reference) / total if total else math.nan


def _compare_surfaces(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: NDArray[np.float64],
    diagonal_mm: float,
    tolerance_mm: float,
) -> SurfaceDistances:
    """Compares two masks cropped to a box that holds both."""
    surfaces = _surface(prediction), _surface(reference)
    points = [np.count_nonzero(surface) for surface in surfaces]
    if not any(points):
        return SurfaceDistances(math.nan, math.nan, math.nan, math.nan, np.empty(0))
    if not all(points):
        return SurfaceDistances(diagonal_mm, diagonal_mm, diagonal_mm, 0.0, np.full(sum(points), diagonal_mm))
    use_tree = sum(points) < _TREE_MAX_SURFACE_SHARE * prediction.size
    directed = _distances_by_tree if use_tree else _distances_by_transform
    distances = np.concatenate([directed(*surfaces, spacing), directed(*surfaces[::-1], spacing)])
    # A tolerance of k voxels and the distance of k voxels may differ in the last bit.
    matched = np.count_nonzero(distances <= tolerance_mm * (1 + 1e-9))
    return SurfaceDistances(
        hausdorff_mm=float(distances.max()),
        hausdorff95_mm=float(np.percentile(distances, 95)),
        average_mm=float(distances.mean()),
        surface_dice=matched / distances.size,
        distances_mm=distances,
    )


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the foreground voxels that have a background neighbour across a face, or the array's edge.

    `ndimage.binary_erosion` gives the same and takes five times as long.
    """
    inside = mask.copy()
    for axis in range(mask.ndim):
        eroded, neighbour = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        eroded[1:] &= neighbour[:-1]
        eroded[:-1] &= neighbour[1:]
        eroded[:1] = eroded[-1:] = False
    return mask ^ inside


def _distances_by_tree(
    source: NDArray[np.bool_], target: NDArray[np.bool_], spacing: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the distance from each source voxel to the nearest target voxel; cost follows their number."""
    tree = KDTree(np.argwhere(target) * spacing, leafsize=32, balanced_tree=False, compact_nodes=False)
    distances, _ = tree.query(np.argwhere(source) * spacing)
    return np.asarray(distances, dtype=np.float64)


def _distances_by_transform(
    source: NDArray[np.bool_], target: NDArray[np.bool_], spacing: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the same as `_distances_by_tree`; cost follows the number of voxels in the box."""
    transform: NDArray[np.float64] = ndimage.distance_transform_edt(~target, sampling=spacing)
    return transform[source]


def _joint_boxes(prediction: NDArray[Any], reference: NDArray[Any], num_labels: int) -> list[Box]:
    """Returns for each label 1…num_labels the smallest box that holds it in both maps; size 0 if in none."""
    found = zip(ndimage.find_objects(prediction, num_labels), ndimage.find_objects(reference, num_labels), strict=True)
    return [_union([box for box in pair if box is not None], prediction.ndim) for pair in found]


def _union(boxes: list[Box], ndim: int) -> Box:
    if not boxes:
        return (slice(0, 0),) * ndim
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def _one_voxel_mm(spacing: NDArray[np.float64]) -> float:
    """Returns the default tolerance of the surface Dice; `surface_distances` says why it is the smallest."""
    return float(spacing.min())


def _diagonal_mm(shape: tuple[int, ...], spacing: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(np.array(shape) * spacing))


def _mask_pair(prediction: ArrayLike, reference: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    predicted, expected = np.asarray(prediction), np.asarray(reference)
    _check_same_shape(predicted, expected)
    return _checked_mask(predicted, "prediction"), _checked_mask(expected, "reference")


def _check_same_shape(prediction: NDArray[Any], reference: NDArray[Any]) -> None:
    if prediction.shape != reference.shape:
        raise InputError(
            "prediction and reference differ in shape: expected the same grid, "
            f"got {prediction.shape} and {reference.shape}; resample one onto the other"
        )


def _checked_mask(array: NDArray[Any], name: str) -> NDArray[np.bool_]:
    if array.dtype == bool:
        return array
    if array.dtype.kind not in "iu" or not 0 <= array.min(initial=0) <= array.max(initial=0) <= 1:
        raise InputError(
            f"{name} is not a binary mask: expected bool or the integers 0 and 1, got {_described(array)}; "
            "compare with a class or a threshold first"
        )
    return array.astype(bool)


def _checked_label_map(array: NDArray[Any], name: str, class_names: Sequence[str]) -> NDArray[Any]:
    array = array.view(np.uint8) if array.dtype == bool else array
    last = len(class_names)
    if array.dtype.kind not in "iu" or not 0 <= array.min(initial=0) <= array.max(initial=0) <= last:
        raise InputError(
            f"{name} is not a label map of these classes: expected integers 0…{last} (0 background, then "
            f"{', '.join(class_names)}), got {_described(array)}; remap its values or name every class"
        )
    return array


def _described(array: NDArray[Any]) -> str:
    if not array.size or array.dtype.kind not in "iuf":
        return f"dtype {array.dtype}"
    return f"dtype {array.dtype} with values from {array.min()} to {array.max()}"


def _checked_names(class_names: Sequence[str]) -> list[str]:
    names = [class_names] if isinstance(class_names, str) else list(class_names)
    if isinstance(class_names, str) or not names or len(set(names)) < len(names):
        raise InputError(
            "class_names do not name the classes: expected a sequence of distinct names for the labels "
            f"1, 2, …, got {class_names!r}; give each foreground class its own name"
        )
    return names


def _checked_spacing(spacing_mm: Sequence[float] | NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Returns the spacing as an array once it, the rank and the size allow surface distances."""
    if len(shape) not in (2, 3) or 0 in shape:
        raise InputError(
            "surfaces cannot be measured in this array: expected 2 or 3 axes with voxels, "
            f"got shape {shape}; drop the batch and channel axes"
        )
    spacing = _as_floats(spacing_mm)
    if spacing is None or spacing.shape != (len(shape),) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise InputError(
            f"spacing_mm does not fit the array: expected {len(shape)} finite positive numbers for shape "
            f"{shape}, got {' '.join(str(spacing_mm).split())}; give the voxel size in mm along each array axis"
        )
    return spacing


def _as_floats(values: Any) -> NDArray[np.float64] | None:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None
