"""DICOM series, one slice a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import files_in_order
from ummkd_tf.scans.checks import check_content, checked
from ummkd_tf.scans.geometry import Volume, pixels
from ummkd_tf.scans.itk import ras_affine, read_sitk, sitk_reader


def dicom_files(folder: str | Path) -> list[Path]:
    """Image files of a DICOM folder in file-name order: `*.dcm` and `*.ima`, else every visible regular file."""
    entries = files_in_order(folder)
    named = [p for p in entries if p.suffix.lower() in (".dcm", ".ima")]
    files = named or [p for p in entries if p.name.upper() != "DICOMDIR"]
    if not files:
        raise InputError(f"{folder}: no DICOM files: expected one series of *.dcm files")
    return files


@dataclass(frozen=True)
class _Slice:
    path: Path
    series: str
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]
    origin: NDArray[np.float64]


_DICOM = "GDCMImageIO"
_LONG_VR = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT")  # PS3.5, 7.1.2


def _check_meta_information(path: Path) -> None:
    """Walks through the file meta information (DICOM PS3.10, 7.1), because GDCM can search a damaged one forever."""
    content = path.read_bytes()
    place, transfer_syntax = 132, False
    if content[128:132] == b"DICM":
        while content[place : place + 2] == b"\2\0":  # group 2; explicit VR, little endian, whatever comes after
            long = content[place + 4 : place + 6] in _LONG_VR
            value = place + (12 if long else 8)
            size = int.from_bytes(content[value - (4 if long else 2) : value], "little")
            transfer_syntax |= content[place + 2 : place + 4] == b"\x10\0"
            place = value + size
    if not transfer_syntax or place >= len(content):
        raise InputError(f"{path}: not a readable DICOM image: remove it or copy it again")


def _read_slice_header(path: Path) -> _Slice:
    check_content(path)
    _check_meta_information(path)
    reader = sitk_reader(path, _DICOM)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: not a readable DICOM image: remove it or copy it again") from error
    keys = reader.GetMetaDataKeys()
    if "0020|0032" not in keys or "0020|0037" not in keys:
        raise InputError(
            f"{path}: no ImagePositionPatient or ImageOrientationPatient: slices cannot be put in order; "
            "export the series again with its geometry"
        )
    if reader.GetDimension() != 3 or reader.GetSize()[2] != 1:
        raise InputError(f"{path}: {reader.GetSize()} pixels: expected one slice a file; export it as single slices")
    return _Slice(
        path,
        reader.GetMetaData("0020|000e").strip("\0 ") if "0020|000e" in keys else "",
        tuple(reader.GetSize()[:2]),
        tuple(round(s, 6) for s in reader.GetSpacing()[:2]),
        tuple(round(d, 4) for d in reader.GetDirection()),
        np.asarray(reader.GetOrigin(), np.float64),
    )


def read_dicom_series(folder: str | Path) -> tuple[Volume, list[int]]:
    """Assembles the one DICOM series of a folder by ImagePositionPatient.

    The distance of slices is taken from their positions: SliceThickness and SpacingBetweenSlices are known to be
    wrong in CHAOS (SPEC §5).

    Returns:
        The volume, and for each slice k the position of its file in file-name order.

    Raises:
        InputError: Two series, mixed sizes, spacings or orientations, a duplicate position, a missing slice, or an
            unreadable file.
    """
    folder = Path(folder)
    slices = [_read_slice_header(path) for path in dicom_files(folder)]
    first = slices[0]
    for what, values in (
        ("series", {s.series for s in slices}),
        ("image sizes", {s.size for s in slices}),
        ("pixel spacings", {s.spacing for s in slices}),
        ("orientations", {s.direction for s in slices}),
    ):
        if len(values) > 1:
            found = ", ".join(str(v) for v in sorted(values, key=str)[:3])
            raise InputError(f"{folder}: {len(values)} {what} in one folder ({found}): expected one; separate them")

    direction = np.reshape(first.direction, (3, 3))
    positions = np.array([s.origin for s in slices])
    along = positions @ direction[:, 2]
    order = np.argsort(along, kind="stable")
    if len(order) < 2:
        raise InputError(f"{folder}: one DICOM slice: expected a volume of at least two")
    gaps = np.diff(along[order])
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3:
        at = int(gaps.argmin())
        pair = f"{slices[order[at]].path.name} and {slices[order[at + 1]].path.name}"
        raise InputError(f"{folder}: {pair} have the same position: expected one file a slice; remove one")
    # Half a slice apart from the rest is a missing slice; 2 % covers rounded coordinates.
    uneven = np.flatnonzero(np.abs(gaps - usual) > max(0.02 * usual, 0.01))
    if uneven.size:
        at = int(uneven[0])
        pair = f"{slices[order[at]].path.name} and {slices[order[at + 1]].path.name}"
        raise InputError(
            f"{folder}: {gaps[at]:.3f} mm between {pair}, {usual:.3f} mm elsewhere: "
            "expected evenly spaced slices; restore the missing slice"
        )

    array = np.empty((*first.size, len(order)), np.float32)
    for k, which in enumerate(order):
        image = read_sitk(slices[which].path, _DICOM)
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise InputError(f"{slices[which].path}: a colour image: expected one value per pixel")
        array[:, :, k] = pixels(image).squeeze(axis=2)
    step = (positions[order[-1]] - positions[order[0]]) / (len(order) - 1)
    axes = np.column_stack([direction[:, 0] * first.spacing[0], direction[:, 1] * first.spacing[1], step])
    return checked(array, ras_affine(axes, positions[order[0]]), folder), [int(i) for i in order]
