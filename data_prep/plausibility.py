"""What is possible in a header and yet hardly true: units, extents and intensities. Limits are our choice."""

from __future__ import annotations

import numpy as np

from ummkd_tf.scans.geometry import Volume
from ummkd_tf.scans.preprocessing import clip_intensity
from ummkd_tf.tasks import Task

SMALLEST_VOXEL_MM = 0.05  # half of what clinical CT of the ear has
LONGEST_MM, SHORTEST_MM = 2200.0, 20.0  # of a scan, along any axis: a tall adult, and less than a kidney
_CLIPPED_SHARE = 0.5  # of the voxels that show more than the darkest value
_AIR_HU, _SOFT_HU = -200.0, 300.0


def implausible(image: Volume, task: Task, modality: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Problems as (what was found, how to mend it), and notes, of a scan as it was read.

    Args:
        image: The scan.
        task: Gives the intensity range.
        modality: The scan's.
    """
    problems, notes = [], []
    spacing, shape = image.grid.spacing_mm, image.array.shape
    extent = [size * count for size, count in zip(spacing, shape, strict=True)]
    sizes = " × ".join(f"{size:.4g}" for size in spacing) + " mm"
    extents = " × ".join(f"{length:.0f}" for length in extent) + " mm"
    if min(spacing) < SMALLEST_VOXEL_MM:
        fix = f"expected at least {SMALLEST_VOXEL_MM} mm; write the file again with its spacing in mm"
        problems.append((f"voxels of {sizes}", fix))
    elif max(extent) > LONGEST_MM:
        notes.append(f"the scan is {extents} large, more than a person: is the spacing in mm?")
    elif min(extent) < SHORTEST_MM:
        notes.append(f"the scan is {extents} large: are distances in cm written as mm?")
    clip = task.clip_for(modality)
    if clip.unit == "value":
        clipped = clip_intensity(image.array, clip)
        shown = clipped[clipped > clip.low]
        share = float((shown == clip.high).mean()) if shown.size else 0.0
        if share > _CLIPPED_SHARE:
            notes.append(
                f"{share:.0%} of the voxels brighter than {clip.low:g} lie at or above {clip.high:g}, where the task "
                f"cuts: usual are a few per cent; is {modality} stored with another offset, as HU + 1024?"
            )
    if modality == "ct" and image.array.min() > _AIR_HU and np.percentile(image.array, 99) > 2 * _SOFT_HU:
        notes.append(
            f"no value below {_AIR_HU:g} and many above {2 * _SOFT_HU:g}: air has -1000 HU; is the CT stored as "
            "HU + 1024?"
        )
    return problems, notes
