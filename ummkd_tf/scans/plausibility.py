"""Headers that are valid but hardly true: wrong units, extents and intensities. Limits are our choice."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.scans.geometry import Grid, Volume
from ummkd_tf.tasks import Task

SMALLEST_VOXEL_MM = 0.05  # half of what clinical CT of the ear has
LONGEST_MM, SHORTEST_MM = 2200.0, 20.0  # of a scan, along any axis: a tall adult, and less than a kidney
LARGEST_MM = 3000.0  # of a scan, along any axis; no scanner has such a table
_NARROWEST_MM = 55.0  # of a scan's picture; a body 300 to 500 mm wide in cm is 30 to 50
_CUT_SHARE = 0.5  # of the voxels brighter than the darkest
_DARK_SHARE = 0.01  # of all voxels
_AIR_HU, _BONE_HU = -200.0, 600.0  # air is at -1000, and no MR has values far below 0
_SURELY_HU = -500.0  # lower values are those of a CT, also where a name does not say so
_FEW_VALUES = 16  # a picture has hundreds
# What a modality's name says about the machine; other names say nothing.
_MACHINES = {"CT": r"ct(?![a-z])|cect", "MR": r"mri?(?![a-z])|t[12]|flair|pd(?![a-z])|dwi|adc|bssfp"}
_OTHER_MACHINES = ("PT", "NM", "US", "CR", "DX", "MG", "XA")


def machine(modality: str) -> str | None:
    """DICOM's name for the machine that a modality's name speaks of, CT or MR; None where it does not."""
    return next((name for name, pattern in _MACHINES.items() if re.match(pattern, modality.lower())), None)


def check_machine(tag: str, modality: str, path: Path) -> None:
    """Refuses DICOM files of another machine than a modality's name speaks of.

    Args:
        tag: The files' Modality, e.g. CT; "" where they have none.
        modality: What the scan is said to be, e.g. "t1".
        path: The scan, for the message.

    Raises:
        InputError: The tag is of another machine; never where the name or the tag says no machine.
    """
    expected = machine(modality)
    if expected is not None and tag != expected and tag in (*_MACHINES, *_OTHER_MACHINES):
        raise InputError(
            f"the DICOM files' Modality is {tag}",
            where=path,
            fix=f"expected {expected} for modality {modality!r}; give the scan's own modality",
        )


def _extents(grid: Grid) -> list[float]:
    return [size * count for size, count in zip(grid.spacing_mm, grid.shape, strict=True)]


def _mm(lengths: list[float]) -> str:
    return " × ".join(f"{length:.0f}" for length in lengths) + " mm"


def odd_size(grid: Grid) -> list[str]:
    """Notes on a scan whose extent is hardly that of a patient."""
    extent = _extents(grid)
    if max(extent) > LONGEST_MM:
        return [f"the scan is {_mm(extent)} large, more than a person: is the spacing in mm?"]
    if min(extent) < SHORTEST_MM or sorted(extent)[1] < _NARROWEST_MM:
        thin = 1 in grid.shape or sorted(extent)[1] >= _NARROWEST_MM  # wide enough for a body, with few slices
        slices = min(grid.shape)
        why = f"it has {slices} slice{'s' * (slices > 1)}" if thin else "are distances in cm written as mm?"
        return [f"the scan is {_mm(extent)} large: {why}"]
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
    elif max(extent := _extents(image.grid)) > LARGEST_MM:
        fix = f"expected at most {LARGEST_MM:.0f} mm; write the file again with its spacing in mm"
        problems.append((f"the scan is {_mm(extent)} large", fix))
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
        if np.count_nonzero(image.array > clip.low) < _DARK_SHARE * image.array.size:
            notes.append(
                f"hardly a voxel lies above {clip.low:g}, where the task cuts: is {modality} stored with an offset?"
            )
    lowest = float(image.array.min())
    # A scan whose values were cut at the task's lower limit, or below it, has lost nothing that the task uses.
    air = clip.low if clip.unit == "value" and clip.low < 0 else _AIR_HU
    if machine(modality) == "CT" and lowest > air:
        bright = bool(np.percentile(image.array[::4, ::4, ::4], 99) > _BONE_HU)
        notes.append(
            f"no value below {lowest:g}: a CT in Hounsfield units has air at -1000; is this a CT, and in these units?"
            + f" Many values lie above {_BONE_HU:g}: is it stored as HU + 1024?" * bright
        )
    if machine(modality) == "MR" and lowest < _AIR_HU:
        notes.append(f"values down to {lowest:g}, which looks like a CT, but its modality is said to be {modality}")
    if machine(modality) is None and modality not in task.clip and clip.unit == "percentile" and lowest < _SURELY_HU:
        notes.append(
            f"values down to {lowest:g}, which look like Hounsfield units, and task {task.name} has no range for "
            f"{modality}: it is clipped to the percentiles {clip.low:g} to {clip.high:g}; if it is a CT, rename the "
            f'modality, or give the task a range in Hounsfield units, "clip": {{"{modality}": …}}'
        )
    return problems, notes
