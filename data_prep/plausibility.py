"""Headers that are valid but hardly true: wrong units, extents and intensities. Limits are our choice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.scans.geometry import Grid, Volume
from ummkd_tf.tasks import Task

SMALLEST_VOXEL_MM = 0.05  # half of what clinical CT of the ear has
LONGEST_MM, SHORTEST_MM = 2200.0, 20.0  # of a scan, along any axis: a tall adult, and less than a kidney
_NARROWEST_MM = 55.0  # of a scan's picture; a body of 300 to 500 mm has 30 to 50 where cm were written
_CUT_SHARE = 0.5  # of the voxels brighter than the darkest
_AIR_HU, _SOFT_HU = -200.0, 300.0
_FEW_VALUES = 16  # a picture has hundreds


def odd_size(grid: Grid) -> list[str]:
    """Notes on a scan whose extent is hardly that of a patient."""
    extent = [size * count for size, count in zip(grid.spacing_mm, grid.shape, strict=True)]
    extents = " × ".join(f"{length:.0f}" for length in extent) + " mm"
    if max(extent) > LONGEST_MM:
        return [f"the scan is {extents} large, more than a person: is the spacing in mm?"]
    if min(extent) < SHORTEST_MM or sorted(extent)[1] < _NARROWEST_MM:
        return [f"the scan is {extents} large: are distances in cm written as mm?"]
    return []


def cut_share(values: NDArray, low: float, high: float) -> float:
    """Share of the voxels brighter than `low` that lie at `high` or above, where this is more than half; else 0."""
    bright = np.count_nonzero(values > low)
    share = float(np.count_nonzero(values >= high) / bright) if bright else 0.0
    return share if share > _CUT_SHARE else 0.0


def implausible(image: Volume, task: Task, modality: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Problems as (what was found, how to mend it), and notes, of a scan as it was read.

    Args:
        image: The scan.
        task: Gives the intensity range.
        modality: The scan's.
    """
    problems, notes = [], []
    if min(image.grid.spacing_mm) < SMALLEST_VOXEL_MM:
        sizes = " × ".join(f"{size:.4g}" for size in image.grid.spacing_mm) + " mm"
        fix = f"expected at least {SMALLEST_VOXEL_MM} mm; write the file again with its spacing in mm"
        problems.append((f"voxels of {sizes}", fix))
    else:
        notes += odd_size(image.grid)
    # A sample first, because sorting all voxels takes long.
    values = image.array
    if np.unique(values[::4, ::4, ::4]).size <= _FEW_VALUES and (count := np.unique(values).size) <= _FEW_VALUES:
        notes.append(f"the image has only {count} different values, usual are hundreds: is it a label map?")
    clip = task.clip_for(modality)
    if clip.unit == "value":
        share = cut_share(image.array, clip.low, clip.high)
        if share:
            notes.append(
                f"{share:.0%} of the voxels brighter than {clip.low:g} lie at or above {clip.high:g}, where the task "
                f"cuts: usual are a few per cent; is {modality} stored with another offset, as HU + 1024?"
            )
    if (
        modality == "ct"
        and image.array.min() > _AIR_HU
        and np.percentile(image.array[::4, ::4, ::4], 99) > 2 * _SOFT_HU
    ):
        notes.append(
            f"no value below {_AIR_HU:g} and many above {2 * _SOFT_HU:g}: air has -1000 HU; is the CT stored as "
            "HU + 1024?"
        )
    return problems, notes
