"""Label maps that another program has made of prepared cases' scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from numpy.typing import NDArray

from data_prep.sources.raw_case import remap
from ummkd_tf.common.errors import InputError, listed
from ummkd_tf.data.cases import Case
from ummkd_tf.scans.geometry import Grid, Volume, resample, same_geometry, straightened
from ummkd_tf.scans.preprocessing import resample_label
from ummkd_tf.scans.reading import VOLUME_SUFFIXES, on_grid_of, read_label, with_axes_of


def find_label_maps(folder: Path, case_ids: Sequence[str]) -> dict[str, Path]:
    """Case id → its file, which is called <case>.nii.gz, or with the suffix of another image format.

    Raises:
        InputError: Cases without a file, or with two.
    """
    found = {case_id: [p for s in VOLUME_SUFFIXES if (p := folder / f"{case_id}{s}").exists()] for case_id in case_ids}
    if wrong := [case_id for case_id, paths in found.items() if len(paths) != 1]:
        raise InputError(
            f"{len(wrong)} of {len(case_ids)} cases have no label map, or two: {listed(wrong)}",
            where=folder,
            fix=f"expected one for each case, e.g. {wrong[0]}.nii.gz",
        )
    return {case_id: path for case_id, (path,) in found.items()}


def read_label_map(path: Path, scan: Grid, classes: Mapping[int, int]) -> Volume:
    """A label map as task classes (uint8).

    Args:
        path: Its file, in any order of axes.
        scan: Grid of the scan. Of a tilted one, whose slices NIfTI programs cannot keep, the upright grid is taken too.
        classes: Task class by value of the file.

    Raises:
        InputError: Another grid, or an unknown value.
    """
    label = on_grid_of(scan, with_axes_of(scan, read_label(path)), path)
    difference = same_geometry(scan, label.grid)
    if difference and same_geometry(straightened(scan), label.grid):
        raise InputError(
            f"the label map has {difference}", where=path, fix="expected the scan's own grid; resample it there"
        )
    return Volume(remap(label.array, classes, path), label.affine)


def label_map_on(grid: Grid, label: Volume, case: Case, num_classes: int) -> NDArray:
    """A label map on the grid on which it is evaluated; it gets there in the same way as the case's reference.

    Args:
        grid: The case's prepared grid, the scan's own, or the upright one over a tilted scan.
        label: From `read_label_map`.
        case: The case.
        num_classes: Of the task, with background.
    """
    if same_geometry(grid, label.grid) is None:
        return label.array
    return resample_label(label, grid, num_classes) if grid is case.grid else resample(label, grid, "nearest")
