"""Reads volumes of every format, with their place in the patient."""

from __future__ import annotations

import contextlib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import check_exists, files_in_order
from ummkd_tf.scans.checks import check_content
from ummkd_tf.scans.dicom import DicomSeries, is_dicom
from ummkd_tf.scans.geometry import Grid, Volume, corners_apart_voxels, reorient, same_geometry
from ummkd_tf.scans.itk import read_itk
from ummkd_tf.scans.nifti import read_nifti

_LOG = logging.getLogger(__name__)

_NEIGHBOUR = 0.49  # of a voxel; 0.5 is a voxel's corner taken for its centre, which is no rounding
_WHOLE = 1e-3  # a label this near to a whole number is that number, rounded by a slope or by float32
_NIFTI_SUFFIXES = (".nii", ".nii.gz")
_ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_SUFFIXES = _NIFTI_SUFFIXES + _ITK_SUFFIXES
"""Suffixes of files that hold one scan each."""

# How files begin, and how their names end.
_BEGINNINGS = {
    b"NRRD000": (".nrrd", ".nhdr"),
    b"ObjectType": (".mha", ".mhd"),
    b"\x89HDF": (".h5",),
    b"\x89PNG": (".png",),
    b"\x1f\x8b": (".nii.gz", ".nii"),
    (348).to_bytes(4, "little"): _NIFTI_SUFFIXES,
    (348).to_bytes(4, "big"): _NIFTI_SUFFIXES,
}
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class Scan:
    """A volume as it was read.

    Attributes:
        volume: In the file's own axis order.
        files: Of DICOM: its image files in file-name order; otherwise ().
        file_of_slice: For each slice k the position of its file in `files`.
        modality: Of DICOM: what the files say, e.g. CT; otherwise "".
    """

    volume: Volume
    files: tuple[Path, ...] = ()
    file_of_slice: tuple[int, ...] = ()
    modality: str = ""


def read_scan(path: str | Path) -> Scan:
    """`read_volume`, and what else was seen while reading the files."""
    return _read(Path(path))


def study_of(path: str | Path) -> str:
    """StudyInstanceUID of a DICOM scan, from the header of its first file that has one; "" where none can be read."""
    path = Path(path)
    with contextlib.suppress(InputError, OSError):  # whoever reads the scan says what is wrong with it
        if is_dicom_scan(path):
            files = files_in_order(path) if path.is_dir() else [path]
            return next(filter(None, map(_study, files)), "")
    return ""


def _study(file: Path) -> str:
    try:
        # Python opens the file, because pydicom takes only UTF-8 paths. Other values are skipped, not read.
        with open(file, "rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=["StudyInstanceUID"])
            return str(header.get("StudyInstanceUID") or "")
    except Exception:  # damaged files, and those that are no DICOM, raise many kinds of errors
        return ""


def read_volume(path: str | Path) -> Volume:
    """Reads a NIfTI, NRRD or MetaImage file, a folder with one DICOM series, or one multi-frame DICOM file.

    Returns:
        Volume in the file's own axis order. Floating-point images are float32.

    Raises:
        InputError: Not readable, not 3D, no orientation, or NaN/Inf voxels.
    """
    return _read(Path(path)).volume


def _read(path: Path, labels: bool = False) -> Scan:
    named = path.name.lower()
    check_exists(path)
    if path.is_file():
        check_content(path)
    if is_dicom_scan(path):
        series = DicomSeries.open(path)
        return Scan(series.read(labels), series.files, series.file_of_slice, series.modality)
    if is_dicom(path):
        raise InputError(
            "a DICOM file with the name of another format", where=path, fix="rename it, or give its folder"
        )
    if named.endswith(VOLUME_SUFFIXES):
        _check_name(path)
    if named.endswith(_NIFTI_SUFFIXES):
        return Scan(read_nifti(path, labels))
    if named.endswith(_ITK_SUFFIXES):
        return Scan(read_itk(path))
    raise InputError(
        "unknown image format",
        where=path,
        fix=f"expected {', '.join(VOLUME_SUFFIXES)} or a DICOM folder",
    )


def _check_name(path: Path) -> None:
    """Refuses a file that begins as one of another format than its name says."""
    with open(path, "rb") as stream:
        head = stream.read(16)
    for beginning, suffixes in _BEGINNINGS.items():
        if head.startswith(beginning) and not path.name.lower().endswith(suffixes):
            raise InputError(f"begins as a {suffixes[0]} file", where=path, fix=f"rename it, as *{suffixes[0]}")


def is_dicom_scan(path: Path) -> bool:
    """Whether `read_volume` takes a path for DICOM: a folder, or a file by its name, or by its content."""
    named = path.name.lower()
    if path.is_dir() or named.endswith(_DICOM_SUFFIXES):
        return True
    return path.is_file() and not named.endswith(VOLUME_SUFFIXES) and is_dicom(path)


def read_label(path: str | Path) -> Volume:
    """Reads a label map with `read_volume` and checks that every value is a whole number.

    Returns:
        Volume of int32.

    Raises:
        InputError: As `read_volume`, or a fractional or out-of-range label.
    """
    volume = _read(Path(path), labels=True).volume
    return Volume(as_labels(volume.array, path), volume.affine)


def with_axes_of(image: Grid, label: Volume) -> Volume:
    """A label map with its axes in the image's order, because programs store them in different orders."""
    if label.grid.axes == image.axes or same_geometry(image, label.grid) is None:
        return label
    return reorient(label, image.axes)


def on_grid_of(image: Grid, label: Volume, path: str | Path) -> Volume:
    """A label map on its image's grid, where a rounded header moves no voxel to a neighbour's place; else as it was.

    Our choice, because programs write a spacing of 0.6797 mm as 0.68, which moves the last of 512 voxels by 0.15 mm; so
    small a difference of headers is no sign of another scan. More than rounding noise is logged.
    """
    difference = same_geometry(image, label.grid)
    if difference is None or image.shape != label.grid.shape:
        return label
    apart = corners_apart_voxels(image, label.grid)
    if apart >= _NEIGHBOUR:
        return label
    text = "%s: its header lies up to %.2f of a voxel off the image's (%s); the image's is used"
    _LOG.warning(text, path, apart, difference)
    return Volume(label.array, image.affine)


def as_labels(array: NDArray, path: str | Path) -> NDArray[np.int32]:
    """Whole-number array as int32; a fraction is an error, since rounding it could invent a label."""
    if array.dtype.kind == "f":
        whole = np.round(array)
        fractional = array[np.abs(array - whole) > _WHOLE]
        if fractional.size:
            raise InputError(
                f"{fractional.size} label voxels are not whole numbers (first: {fractional.flat[0]:.7g})",
                where=path,
                fix="expected class values; save the label map without interpolation, and without a slope",
            )
        array = whole
    if array.size and (array.min() < np.iinfo(np.int32).min or array.max() > np.iinfo(np.int32).max):
        raise InputError(f"label values up to {array.max():g}", where=path, fix="expected class values")
    return array.astype(np.int32)
