"""Volumes with their place in the patient: reading, writing, reorientation and resampling.

Convention: an array is indexed `[i, j, k]` and its affine maps that index to world millimetres in RAS
(+x right, +y anterior, +z superior), as NIfTI does. SimpleITK's LPS and `[z, y, x]` stay inside this file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.scans.dicom import read_dicom_series
from ummkd_tf.scans.geometry import Volume
from ummkd_tf.scans.itk import from_sitk, read_sitk
from ummkd_tf.scans.nifti import read_nifti

_NIFTI_SUFFIXES = (".nii", ".nii.gz")
_ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")


def read_volume(path: str | Path) -> Volume:
    """Reads a NIfTI, NRRD or MetaImage file, or a folder with one DICOM series.

    Returns:
        Volume in the file's own axis order. Floating-point images are float32.

    Raises:
        InputError: Not readable, not 3D, no orientation, or NaN/Inf voxels.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder: check the path")
    if path.is_dir():
        return read_dicom_series(path)[0]
    if path.name.endswith(_NIFTI_SUFFIXES):
        return read_nifti(path)
    if path.name.endswith(_ITK_SUFFIXES):
        return from_sitk(read_sitk(path), path)
    raise InputError(
        f"{path}: unknown image format: expected {', '.join(_NIFTI_SUFFIXES + _ITK_SUFFIXES)} or a DICOM folder"
    )


def read_label(path: str | Path) -> Volume:
    """Reads a label map with `read_volume` and checks that every value is a whole number.

    Returns:
        Volume of int32.

    Raises:
        InputError: As `read_volume`, or a fractional or out-of-range label.
    """
    volume = read_volume(path)
    return Volume(as_labels(volume.array, path), volume.affine)


def as_labels(array: NDArray, path: str | Path) -> NDArray[np.int32]:
    """Whole-number array as int32; a fraction is an error, since rounding it could invent a label."""
    if array.dtype.kind == "f":
        fractional = array[array != np.round(array)]
        if fractional.size:
            raise InputError(
                f"{path}: {fractional.size} label voxels are not whole numbers (first: {fractional.flat[0]:g}): "
                "expected class values; save the label map without interpolation"
            )
    if array.size and (array.min() < np.iinfo(np.int32).min or array.max() > np.iinfo(np.int32).max):
        raise InputError(f"{path}: label values up to {array.max():g}: expected class values")
    return array.astype(np.int32)
