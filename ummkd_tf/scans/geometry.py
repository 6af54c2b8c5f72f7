"""Where voxels lie in the patient: grids, reorientation and resampling.

Convention: an array is indexed `[i, j, k]` and its affine maps that index to world millimetres in RAS
(+x right, +y anterior, +z superior), as NIfTI does. SimpleITK's LPS and `[z, y, x]` stay inside this package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

Affine = NDArray[np.float64]
Interpolation = Literal["nearest", "linear", "bspline"]

CORNERS = np.array(list(np.ndindex(2, 2, 2)))
"""Of the unit cube, [8, 3]."""

_BLOCK_VOXELS = 2**25  # resampled at a time; ITK holds several copies, of 128 MiB each
ROUNDING_MM = 0.1  # far below any voxel; headers of one scan differ so much
_EXACT = 1e-6  # largest dot product of perpendicular directions; ITK allows ten times as much
_INTERPOLATORS = {"nearest": "sitkNearestNeighbor", "linear": "sitkLinear", "bspline": "sitkBSpline"}


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: `affine` [4, 4] maps index `[i, j, k]` to RAS millimetres; `shape` counts voxels."""

    affine: Affine
    shape: tuple[int, int, int]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along i, j, k."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def voxel_volume_mm3(self) -> float:
        """|det|; the product of the spacings where the grid is not tilted."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def is_tilted(self) -> bool:
        """Whether the axes are not perpendicular, by more than rounding."""
        return orthonormalized(self) is None

    @property
    def axes(self) -> str:
        """Patient direction in which each index increases, e.g. "LPS"."""
        return "".join(nib.aff2axcodes(self.affine))

    def world(self, index: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """World position (RAS mm) of voxel indices `[..., 3]`."""
        return np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Fractional voxel indices `[..., 3]` of world positions (RAS mm)."""
        return (np.asarray(world, np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T


def nearest_orthonormal(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Perpendicular unit vectors nearest to those in the columns of `vectors` [3, 2 or 3] (polar decomposition)."""
    left, _, right = np.linalg.svd(vectors, full_matrices=False)
    return left @ right


def orthonormalized(grid: Grid) -> Grid | None:
    """The grid with exactly perpendicular axes, where that moves no voxel by more than rounding does, else None.

    Headers give directions in single precision or in a few decimals, and ITK refuses a NIfTI file whose directions are
    not orthonormal to 1e-5. The first voxel stays. None means a tilted grid, as a CT's with a tilted gantry.
    """
    spacing = np.asarray(grid.spacing_mm)
    directions = grid.affine[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() < _EXACT:
        return grid
    affine = grid.affine.copy()
    affine[:3, :3] = nearest_orthonormal(directions) * spacing
    upright = Grid(affine, grid.shape)
    return upright if _corners_apart_mm(grid, upright) <= ROUNDING_MM else None


def straightened(grid: Grid) -> Grid:
    """The grid itself; for a tilted one, the smallest grid of perpendicular axes and the same spacing that covers it.

    Distances and label maps need perpendicular axes. The axis nearest to one of the patient's stays as it is (that of
    the table, where the gantry was tilted), and the next is made perpendicular to it.
    """
    upright = orthonormalized(grid)
    if upright:
        return upright
    spacing = np.asarray(grid.spacing_mm)
    directions = grid.affine[:3, :3] / spacing
    order = np.argsort(-np.abs(directions).max(axis=0).round(6), kind="stable")
    triangular, signs = np.linalg.qr(directions[:, order])
    axes = np.empty((3, 3))
    axes[:, order] = triangular * np.sign(np.diag(signs))
    edges = (grid.world(CORNERS * np.asarray(grid.shape) - 0.5)) @ axes  # the outer corners, along the new axes
    first, last = edges.min(axis=0), edges.max(axis=0)
    shape = np.ceil((last - first) / spacing - 1e-6).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = axes @ ((first + last - (shape - 1) * spacing) / 2)
    return Grid(affine, tuple(shape.tolist()))


def ras_affine(lps_axes: NDArray, lps_origin: NDArray) -> Affine:
    """Affine of vectors from voxel to voxel [3, 3] and a first voxel given in LPS, as DICOM and ITK do."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = lps_axes, lps_origin
    affine[:2] *= -1
    return affine


@dataclass(frozen=True)
class Volume:
    """A 3D array and its affine."""

    array: NDArray
    affine: Affine

    @property
    def grid(self) -> Grid:
        """The voxels' places."""
        return Grid(self.affine, self.array.shape)


def pixels(image: sitk.Image) -> NDArray:
    """Values as `[i, j, …]`."""
    return sitk.GetArrayFromImage(image).T


def _corners_apart_mm(a: Grid, b: Grid) -> float:
    corners = CORNERS * (np.asarray(a.shape) - 1)
    return float(np.linalg.norm(a.world(corners) - b.world(corners), axis=1).max())


def corners_apart_voxels(a: Grid, b: Grid) -> float:
    """How many voxels of a grid the outer corners of another of its shape lie off, along that axis where it is most."""
    corners = CORNERS * np.asarray(a.shape) - 0.5
    return float(np.abs(a.index(b.world(corners)) - corners).max())


def same_geometry(a: Grid, b: Grid) -> str | None:
    """Why two grids differ, or None where they agree: same shape, and no corner further apart than `ROUNDING_MM`.

    Headers of one scan often differ by rounding noise; a tenth of a millimetre lies far below any voxel.
    """
    if a.shape != b.shape:
        return f"shape {b.shape}, expected {a.shape}"
    apart = _corners_apart_mm(a, b)
    if not np.allclose(a.spacing_mm, b.spacing_mm, atol=1e-3, rtol=1e-3):
        return f"spacing {_mm(b.spacing_mm)}, expected {_mm(a.spacing_mm)}"
    # Before axes are compared by name: halfway between two of the patient's axes, rounding decides on the name.
    if apart <= ROUNDING_MM:
        return None
    if a.axes != b.axes:
        return f"orientation {b.axes}, expected {a.axes}"
    return f"position or direction off by {apart:.2f} mm"


def _mm(values: Sequence[float]) -> str:
    return " × ".join(f"{v:.3f}" for v in values) + " mm"


def reorient(volume: Volume, axes: str) -> Volume:
    """Permutes and flips array axes so that the indices increase towards `axes` (e.g. "PLS"); no resampling."""
    start = nib.orientations.io_orientation(volume.affine)
    transform = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(tuple(axes)))
    array = nib.orientations.apply_orientation(volume.array, transform)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(transform, volume.array.shape)
    return Volume(array, affine)


def to_sitk(array: NDArray, affine: Affine) -> sitk.Image:
    """SimpleITK image of an array `[i, j, k]` and its RAS affine."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    spacing, origin, direction = _itk_place(affine)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def _itk_place(affine: Affine) -> tuple[list[float], list[float], list[float]]:
    """Spacing, origin and direction (LPS) of a RAS affine, as ITK takes them."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return spacing.tolist(), lps[:3, 3].tolist(), (lps[:3, :3] / spacing).ravel().tolist()


def blocks(grid: Grid, count: int) -> Iterator[tuple[slice, ...]]:
    """Windows that cover a grid, in order: its longest axis is cut into about `count` parts of whole layers."""
    axis = int(np.argmax(grid.shape))
    step = max(1, math.ceil(grid.shape[axis] / count))
    for start in range(0, grid.shape[axis], step):
        window = [slice(0, size) for size in grid.shape]
        window[axis] = slice(start, min(start + step, grid.shape[axis]))
        yield tuple(window)


def part(grid: Grid, window: tuple[slice, ...]) -> Grid:
    """The grid of an array cut by `window`."""
    first, second, third = (side.stop - side.start for side in window)
    return Grid(shifted(grid.affine, window), (first, second, third))


def around(volume: Volume, grid: Grid) -> Volume:
    """The part of a volume that linear interpolation at a grid's voxels needs; may be empty."""
    corners = volume.grid.index(grid.world(CORNERS * (np.asarray(grid.shape) - 1)))
    box = window(volume.grid, np.floor(corners.min(axis=0)) - 1, np.ceil(corners.max(axis=0)) + 2)
    return crop(volume, box)


def resample(volume: Volume, grid: Grid, interpolation: Interpolation, outside: float = 0.0) -> NDArray:
    """Values of a volume at the voxels of another grid.

    A large grid is resampled in blocks, so that the libraries' copies stay small; "bspline" needs the whole volume at
    once.

    Args:
        volume: Any orientation.
        grid: Where values are wanted.
        interpolation: "linear" or "bspline" for images, "nearest"; label maps: `preprocessing.resample_label`.
        outside: Value beyond the volume (NaN marks such voxels).

    Returns:
        Array of `grid.shape`; float32, or the volume's own type for "nearest".
    """
    count = math.ceil(max(volume.array.size, math.prod(grid.shape)) / _BLOCK_VOXELS)
    if count == 1 or interpolation == "bspline":
        return _resample(volume, grid, interpolation, outside)
    result = np.full(grid.shape, outside, volume.array.dtype if interpolation == "nearest" else np.float32)
    for box in blocks(grid, count):
        source = around(volume, part(grid, box))
        if source.array.size:
            result[box] = _resample(source, part(grid, box), interpolation, outside)
    return result


def _resample(volume: Volume, grid: Grid, interpolation: Interpolation, outside: float) -> NDArray:
    array = volume.array
    if interpolation in ("linear", "bspline"):
        array = array.astype(np.float32, copy=False)
    spacing, origin, direction = _itk_place(grid.affine)
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(getattr(sitk, _INTERPOLATORS[interpolation]))
    resampler.SetDefaultPixelValue(outside)
    resampler.SetSize([int(n) for n in grid.shape])
    resampler.SetOutputSpacing(spacing)
    resampler.SetOutputOrigin(origin)
    resampler.SetOutputDirection(direction)
    return pixels(resampler.Execute(to_sitk(array, volume.affine)))


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The smallest box [rows, columns, slices] with all voxels of a mask; None where it has none."""
    along = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(int(a[0]), int(a[-1]) + 1) for a in along) if along[0].size else None


def window(grid: Grid, start: NDArray, stop: NDArray) -> tuple[slice, ...]:
    """The part of the index ranges [start, stop) that lies in the grid."""
    limits = np.clip([start, stop], 0, grid.shape).astype(int).T
    return tuple(slice(*limit) for limit in limits.tolist())


def shifted(affine: Affine, window: tuple[slice, ...]) -> Affine:
    """Affine of an array cut by `window`."""
    result = affine.copy()
    result[:3, 3] = Grid(affine, (1, 1, 1)).world([s.start for s in window])
    return result


def crop(volume: Volume, box: tuple[slice, ...]) -> Volume:
    """The part of a volume inside a box of indices, in the same place."""
    part = volume.array[box]
    return Volume(part, shifted(volume.affine, tuple(slice(s.start or 0, None) for s in box)))
