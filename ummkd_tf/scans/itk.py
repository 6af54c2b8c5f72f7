"""NRRD, MetaImage and PNG files, by SimpleITK."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.documents import DEFLATE_RATIO
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import last_line
from ummkd_tf.scans.checks import check_content, check_rank, check_size, checked
from ummkd_tf.scans.geometry import Affine, Volume, pixels

if TYPE_CHECKING:
    import SimpleITK as sitk


_MAX_HEADER = 2**16  # bytes of a text header
# What names the file of the voxels in a MetaImage and in an NRRD header.
_DATA_FILE = {
    ".mha": rb"^ElementDataFile[ \t]*=[ \t]*([^\r\n]*)",
    ".nrrd": rb"(?i)^data ?file[ \t]*:=?[ \t]*([^\r\n]*)",
}

_DATA_FILE |= {".mhd": _DATA_FILE[".mha"], ".nhdr": _DATA_FILE[".nrrd"]}

_UINT8 = "8-bit unsigned integer"  # as SimpleITK says
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def sitk_reader(path: Path, image_io: str) -> sitk.ImageFileReader:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # problems are reported as InputError, in one line
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    return reader


def read_sitk(path: Path, image_io: str = "") -> sitk.Image:
    """Reads with SimpleITK, whose libraries believe any size: the header is read and checked first."""
    check_content(path)
    stored = sum(file.stat().st_size for file in _files_of(path))
    reader = sitk_reader(path, image_io)
    try:
        reader.ReadImageInformation()
        shape = (*reader.GetSize(), reader.GetNumberOfComponents())
        check_size(path, shape, 1, stored * DEFLATE_RATIO)  # a value has a byte or more
        return reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path}: damaged or unreadable image ({last_line(error)}): copy it again") from error


def _files_of(path: Path) -> list[Path]:
    """An image file and the data file that its header names, which must lie beside it.

    Raises:
        InputError: A header that leads elsewhere, or no header.
    """
    pattern = _DATA_FILE.get(path.suffix)
    if pattern is None:
        return [path]
    with open(path, "rb") as stream:
        head = stream.read(_MAX_HEADER)
    if path.suffix in (".nrrd", ".nhdr"):
        head = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]
    names = [name.decode(errors="replace").strip() for name in re.findall(pattern, head, re.MULTILINE)[:1]]
    names = [name for name in names if name != "LOCAL"]
    for name in names:
        if Path(name).name != name or "\\" in name or "%" in name or name.split()[0] == "LIST":
            raise InputError(
                f"{path}: its voxels are said to lie in {name!r}: expected one file in the same folder; convert it"
            )
    return [path, *(path.with_name(name) for name in names if path.with_name(name).is_file())]


def from_sitk(image: sitk.Image, path: Path) -> Volume:
    check_rank(image.GetDimension(), image.GetSize(), path)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{path}: a colour image: expected one value per voxel; convert it to grey values")
    direction = np.reshape(image.GetDirection(), (3, 3))
    return checked(
        pixels(image),
        ras_affine(direction * np.asarray(image.GetSpacing()), np.asarray(image.GetOrigin())),
        path,
    )


def ras_affine(lps_axes: NDArray, lps_origin: NDArray) -> Affine:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = lps_axes, lps_origin
    affine[:2] *= -1
    return affine


def read_png(path: str | Path) -> NDArray[np.uint8]:
    """8-bit grey PNG as `[i, j]` = [column, row], the order of a DICOM slice in a `Volume`.

    Raises:
        InputError: Unreadable, a colour image, or not 8-bit.
    """
    path = Path(path)
    check_content(path)
    _check_png(path)
    image = read_sitk(path, "PNGImageIO")
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() != 2:
        raise InputError(f"{path}: a colour PNG: expected one 8-bit grey value per pixel; convert it")
    if image.GetPixelIDTypeAsString() != _UINT8:
        raise InputError(f"{path}: a PNG of {image.GetPixelIDTypeAsString()}: expected 8-bit grey values")
    return pixels(image)


def _check_png(path: Path) -> None:
    """Compares the checksum of every chunk, because libpng gives what it has of a damaged picture."""
    content = path.read_bytes()
    place, kind = len(_PNG_SIGNATURE), b""
    while content.startswith(_PNG_SIGNATURE) and kind != b"IEND":
        size = int.from_bytes(content[place : place + 4])
        kind, end = content[place + 4 : place + 8], place + 8 + size
        if end + 4 > len(content) or zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4]):
            break
        place = end + 4
    else:
        if kind == b"IEND":
            return
    raise InputError(f"{path}: damaged or unreadable image (not a whole PNG file): copy it again")
