"""NRRD, MetaImage and PNG files, by SimpleITK."""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ummkd_tf.common.documents import DEFLATE_RATIO
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import last_line
from ummkd_tf.scans.checks import check_content, check_size, checked, one_volume
from ummkd_tf.scans.geometry import Affine, Volume, pixels, ras_affine

_MAX_HEADER = 2**16  # bytes of a text header
# What names the file of the voxels in a MetaImage and in an NRRD header.
_DATA_FILE = {
    ".mha": rb"^ElementDataFile[ \t]*=[ \t]*([^\r\n]*)",
    ".nrrd": rb"(?i)^data ?file[ \t]*:=?[ \t]*([^\r\n]*)",
}
_DATA_FILE |= {".mhd": _DATA_FILE[".mha"], ".nhdr": _DATA_FILE[".nrrd"]}
# NRRD's names of world axes, and their directions in LPS.
_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
}
_UINT8 = "8-bit unsigned integer"  # as SimpleITK says
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_sitk(path: Path, image_io: str) -> sitk.Image:
    """Reads with SimpleITK, once the header is checked: its libraries allocate whatever size a header claims.

    Args:
        path: The file.
        image_io: SimpleITK's name of the reader, e.g. "NrrdImageIO".

    Raises:
        InputError: As `check_content`, `files_of` and `check_size`, or damaged.
    """
    check_content(path)
    files = files_of(path)
    stored = sum(file.stat().st_size for file in files)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # problems are reported as InputError, in one line
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    try:
        with _plain_name(files) as file:
            reader.SetFileName(str(file))
            reader.ReadImageInformation()
            shape = (*reader.GetSize(), reader.GetNumberOfComponents())
            check_size(path, shape, 1, stored * DEFLATE_RATIO)  # a value has a byte or more
            return reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"damaged or unreadable image ({last_line(error)})", where=path, fix="copy it again"
        ) from error


@contextlib.contextmanager
def _plain_name(files: Sequence[Path]) -> Iterator[Path]:
    """The first of the files; a link to it where its path is not UTF-8, because ITK crashes the process at such a
    path."""
    try:
        str(files[0]).encode()
    except UnicodeEncodeError:
        pass
    else:
        yield files[0]
        return
    with tempfile.TemporaryDirectory() as folder:
        links = [Path(folder, f"image{files[0].suffix}"), *(Path(folder, file.name) for file in files[1:])]
        for link, file in zip(links, files, strict=True):
            link.symlink_to(file.resolve())
        yield links[0]


def files_of(path: Path) -> list[Path]:
    """An image file and the data file that its header names, which must lie beside it.

    Raises:
        InputError: A header that leads elsewhere, or no header.
    """
    pattern = _DATA_FILE.get(path.suffix.lower())
    if pattern is None:
        return [path]
    head = _header(path)
    names = [name.decode(errors="replace").strip() for name in re.findall(pattern, head, re.MULTILINE)[:1]]
    names = [name for name in names if name != "LOCAL"]
    for name in names:
        if Path(name).name != name or "\\" in name or "%" in name or name.split()[:1] in ([], ["LIST"]):
            raise InputError(
                f"its voxels are said to lie in {name!r}",
                where=path,
                fix="expected one file in the same folder; convert it",
            )
    return [path, *(path.with_name(name) for name in names if path.with_name(name).is_file())]


def _header(path: Path) -> bytes:
    """The text before the voxels."""
    with open(path, "rb") as stream:
        head = stream.read(_MAX_HEADER)
    pattern = (
        rb"(?s).*?(?=\r?\n\r?\n)" if path.suffix.lower() in (".nrrd", ".nhdr") else rb"(?ms).*?^ElementDataFile[^\n]*"
    )
    text = re.match(pattern, head)
    return text[0] if text else head


def read_itk(path: Path) -> Volume:
    """Reads a NRRD or MetaImage file.

    Raises:
        InputError: As `read_sitk`; not 3D; colour; a slope or an offset; or a header that does not say where its voxels
            lie.
    """
    nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    image = read_sitk(path, "NrrdImageIO" if nrrd else "MetaImageIO")
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError("a colour image", where=path, fix="expected one value per voxel; convert it to grey values")
    shape = one_volume(image.GetSize(), path)
    if not nrrd:
        _check_unscaled(path)
    affine = (_nrrd_affine if nrrd else _metaimage_affine)(path)
    rank = image.GetDimension()
    axes = np.reshape(image.GetDirection(), (rank, rank)) * np.asarray(image.GetSpacing())
    read = ras_affine(axes[:3, :3], np.asarray(image.GetOrigin())[:3])
    if not np.allclose(read, affine, atol=1e-3, rtol=1e-5):
        raise InputError("its header says in two ways where the voxels lie", where=path, fix="write it again")
    return checked(pixels(image).reshape(shape), affine, path)


def _nrrd_affine(path: Path) -> Affine:
    lines = _header(path).decode("latin-1").splitlines()
    fields = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    signs = _SPACES.get(fields.get("space", "").lower())
    axes = [_floats(part) for part in re.findall(r"\(([^)]*)\)", fields.get("space directions", ""))]
    origin = _floats(fields.get("space origin", "").strip("()"))
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", "")))
    _check_units(units - {""}, path)
    if signs is None or [len(v) for v in axes] != [3, 3, 3] or len(origin) != 3:
        raise _no_place(path, "space, space directions and space origin")
    return ras_affine(np.transpose(axes) * np.reshape(signs, (3, 1)), np.multiply(origin, signs))


def _metaimage_fields(path: Path) -> dict[str, str]:
    lines = _header(path).decode("latin-1").splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}


def _check_unscaled(path: Path) -> None:
    """Refuses a MetaImage file whose voxels stand for other values, because ITK reads them as they are stored."""
    fields = _metaimage_fields(path)
    for name, plain in (("ElementToIntensityFunctionSlope", 1), ("ElementToIntensityFunctionOffset", 0)):
        if name in fields and _floats(fields[name]) != [plain]:
            raise InputError(
                f"{name} is {fields[name]}",
                where=path,
                fix=f"expected {plain} or no such field; store the values themselves",
            )


def _metaimage_affine(path: Path) -> Affine:
    fields = _metaimage_fields(path)

    def numbers(*names: str) -> list[float]:
        return next((_floats(fields[name]) for name in names if name in fields), [])

    matrix = numbers("TransformMatrix", "Rotation", "Orientation")
    spacing, origin = numbers("ElementSpacing", "ElementSize"), numbers("Offset", "Position", "Origin")
    rank = math.isqrt(len(matrix))
    _check_units({fields.get("DistanceUnits", "mm")} - {"?"}, path)
    if rank < 3 or rank**2 != len(matrix) or len(spacing) != rank or len(origin) != rank or min(spacing) <= 0:
        raise _no_place(path, "TransformMatrix, ElementSpacing and Offset")
    axes = np.reshape(matrix, (rank, rank)).T * spacing
    return ras_affine(axes[:3, :3], np.asarray(origin[:3]))


def _floats(text: str) -> list[float]:
    """Numbers separated by commas or blanks; empty where one of them is not a number."""
    try:
        return [float(part) for part in re.split(r"[,\s]+", text.strip())]
    except ValueError:
        return []


def _check_units(units: set[str], path: Path) -> None:
    if units - {"mm", "millimeter", "millimeters"}:
        raise InputError(
            f"the header gives distances in {', '.join(sorted(units))}",
            where=path,
            fix="expected mm; write the file again in mm",
        )


def _no_place(path: Path, fields: str) -> InputError:
    return InputError(
        f"the header does not say how large its voxels are and where they lie (fields {fields})",
        where=path,
        fix="write the file again with its geometry",
    )


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
        raise InputError("a colour PNG", where=path, fix="expected one 8-bit grey value per pixel; convert it")
    if image.GetPixelIDTypeAsString() != _UINT8:
        raise InputError(f"a PNG of {image.GetPixelIDTypeAsString()}", where=path, fix="expected 8-bit grey values")
    return pixels(image)


def _check_png(path: Path) -> None:
    """Compares the checksum of every chunk, because libpng returns the readable part of a damaged picture without an
    error."""
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
    raise InputError("damaged or unreadable image (not a whole PNG file)", where=path, fix="copy it again")
