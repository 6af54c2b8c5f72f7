"""Volumes with their place in the patient: reading, writing, reorientation and resampling.

Convention: an array is indexed `[i, j, k]` and its affine maps that index to world millimetres in RAS
(+x right, +y anterior, +z superior), as NIfTI does. SimpleITK's LPS and `[z, y, x]` stay inside this file.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ummkd_tf.documents import DEFLATE_RATIO
from ummkd_tf.errors import InputError

# Imported where it is used: it takes 90 MiB, and a training reads no scans.
if TYPE_CHECKING:
    import SimpleITK as sitk

Affine = NDArray[np.float64]
Interpolation = Literal["nearest", "linear", "bspline"]

_INTERPOLATORS = {"nearest": "sitkNearestNeighbor", "linear": "sitkLinear", "bspline": "sitkBSpline"}
_NIFTI_SUFFIXES = (".nii", ".nii.gz")
_ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
_QUIET = logging.getLogger(f"{__name__}.nibabel")  # nibabel tells what it mends in a header; we check what matters
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False

MAX_VOXELS = 2**29
"""Of one image (512 × 512 × 2048), our choice: 2 GiB as float32. More is refused before memory is taken for it."""

_MAX_PADDING = 512  # bytes after a NIfTI image; more means that its header and its data do not belong together
_MAX_HEADER = 2**16  # bytes of a text header
# What names the file of the voxels in a MetaImage and in an NRRD header.
_DATA_FILE = {
    ".mha": rb"^ElementDataFile[ \t]*=[ \t]*([^\r\n]*)",
    ".nrrd": rb"(?i)^data ?file[ \t]*:=?[ \t]*([^\r\n]*)",
}
_DATA_FILE |= {".mhd": _DATA_FILE[".mha"], ".nhdr": _DATA_FILE[".nrrd"]}
_UINT8 = "8-bit unsigned integer"  # as SimpleITK says
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


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
    def axes(self) -> str:
        """Patient direction in which each index increases, e.g. "LPS"."""
        return "".join(nib.aff2axcodes(self.affine))

    def world(self, index: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """World position (RAS mm) of voxel indices `[..., 3]`."""
        return np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Fractional voxel indices `[..., 3]` of world positions (RAS mm)."""
        return (np.asarray(world, np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T


@dataclass(frozen=True)
class Volume:
    """A 3D array and its affine."""

    array: NDArray
    affine: Affine

    @property
    def grid(self) -> Grid:
        """The voxels' places."""
        return Grid(self.affine, self.array.shape)


# --- reading and writing ---------------------------------------------------------------------------------------------


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
        return _read_nifti(path)
    if path.name.endswith(_ITK_SUFFIXES):
        return _from_sitk(_read_sitk(path), path)
    raise InputError(
        f"{path}: unknown image format: expected {', '.join(_NIFTI_SUFFIXES + _ITK_SUFFIXES)} or a DICOM folder"
    )


def _check_content(path: Path) -> None:
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: not readable: check the file's permissions")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: empty file (0 bytes): copy or download it again")


def _check_size(path: Path, shape: Sequence[int], value_bytes: int, stored_bytes: int) -> None:
    """Refuses what a header claims and the file cannot hold, before memory is taken for it."""
    voxels = math.prod(shape)
    if min(shape, default=0) < 1:
        raise InputError(f"{path}: an image of shape {tuple(shape)}: expected at least one voxel; copy it again")
    if voxels > MAX_VOXELS:
        raise InputError(
            f"{path}: an image of shape {tuple(shape)}, {voxels:.1e} voxels: expected at most {MAX_VOXELS:.1e}, "
            "as 512 × 512 × 2048; crop or reduce it"
        )
    if voxels * value_bytes > stored_bytes:
        raise InputError(
            f"{path}: damaged or truncated: the header tells of shape {tuple(shape)}, and the file is too short for "
            "it: copy it again"
        )


def _read_nifti(path: Path) -> Volume:
    """Reads the voxels by hand, because nibabel stops before the gzip checksum and believes any size."""
    _check_content(path)
    packed = path.name.endswith(".gz")
    try:
        with open(path, "rb") as file:
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            header = _nifti_header(stream)
            shape, dtype = header.get_data_shape(), header.get_data_dtype()
            _check_rank(len(shape), shape, path)
            if (int(header["sform_code"]), int(header["qform_code"])) == (0, 0):
                raise InputError(
                    f"{path}: the header gives no orientation (sform_code and qform_code are 0), so left and right are"
                    " unknown: write the file again with its affine"
                )
            unit = header.get_xyzt_units()[0]
            if unit not in ("mm", "unknown"):
                raise InputError(
                    f"{path}: the header gives distances in {unit}: expected mm; write the file again in mm"
                )
            _check_type(dtype, path)
            _check_size(path, shape, dtype.itemsize, path.stat().st_size * (DEFLATE_RATIO if packed else 1))
            smallest = header.template_dtype.itemsize + 4  # header and extension flags; where 0 is given, it is meant
            _skip(stream, (header.get_data_offset() or smallest) - header.template_dtype.itemsize)
            voxels = _exactly(stream, math.prod(shape) * dtype.itemsize)
            # Reading on to the end compares the checksum; a bomb is left after a few bytes.
            if len(stream.read(_MAX_PADDING + 1)) > _MAX_PADDING:
                raise ValueError("more data than the header tells of")
        array = np.frombuffer(voxels, dtype).reshape(shape, order="F")
        with np.errstate(all="ignore"):  # what becomes infinite is an error below
            slope, intercept = header.get_slope_inter()
            if slope is not None:
                array = nib.volumeutils.apply_read_scaling(array, np.float64(slope), np.float64(intercept))
        affine = np.asarray(header.get_best_affine(), np.float64)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: no memory for its voxels: free some, or crop the image") from error
    except Exception as error:  # nibabel and zlib raise many kinds for damaged files
        raise InputError(f"{path}: damaged or truncated NIfTI file ({_one_line(error)}): copy it again") from error
    return _checked(array, affine, path)


def _nifti_header(stream: BinaryIO) -> nib.Nifti1Header:
    """Header of either version, without its extensions: their sizes are not to be trusted, and nothing is in them."""
    block = _exactly(stream, nib.Nifti1Header.template_dtype.itemsize)
    size = nib.Nifti2Header.template_dtype.itemsize
    second = size in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big"))
    if second:
        block += _exactly(stream, size - len(block))
    header = (nib.Nifti2Header if second else nib.Nifti1Header)(bytes(block), check=False)
    header.check_fix(logger=_QUIET)
    if not bytes(header["magic"]).startswith(b"n+"):
        raise ValueError("not a single-file NIfTI")
    return header


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    content = bytearray(size)
    view, filled = memoryview(content), 0
    while filled < size:
        read = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not read:
            raise EOFError(f"{size - filled} bytes are missing")
        filled += read
    return content


def _skip(stream: BinaryIO, size: int) -> None:
    """Leaves the header's extensions out."""
    if size < 0:
        raise ValueError("the voxels begin inside the header")
    while size:
        read = len(stream.read(min(size, 2**20)))
        if not read:
            raise EOFError("the voxels begin after the end of the file")
        size -= read


def _sitk_reader(path: Path, image_io: str) -> sitk.ImageFileReader:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # problems are reported as InputError, in one line
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    return reader


def _pixels(image: sitk.Image) -> NDArray:
    """Values as `[i, j, …]`."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(image).T


def _read_sitk(path: Path, image_io: str = "") -> sitk.Image:
    """Reads with SimpleITK, whose libraries believe any size: the header is read and checked first."""
    _check_content(path)
    stored = sum(file.stat().st_size for file in _files_of(path))
    reader = _sitk_reader(path, image_io)
    try:
        reader.ReadImageInformation()
        shape = (*reader.GetSize(), reader.GetNumberOfComponents())
        _check_size(path, shape, 1, stored * DEFLATE_RATIO)  # a value has a byte or more
        return reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path}: damaged or unreadable image ({_one_line(error)}): copy it again") from error


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


def _from_sitk(image: sitk.Image, path: Path) -> Volume:
    _check_rank(image.GetDimension(), image.GetSize(), path)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{path}: a colour image: expected one value per voxel; convert it to grey values")
    direction = np.reshape(image.GetDirection(), (3, 3))
    return _checked(
        _pixels(image),
        _ras_affine(direction * np.asarray(image.GetSpacing()), np.asarray(image.GetOrigin())),
        path,
    )


def _ras_affine(lps_axes: NDArray, lps_origin: NDArray) -> Affine:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = lps_axes, lps_origin
    affine[:2] *= -1
    return affine


def _check_rank(rank: int, shape: Sequence[int], path: Path) -> None:
    if rank != 3:
        raise InputError(
            f"{path}: {rank}D image of shape {tuple(shape)}: expected 3D; give one volume (a 4D file must be split)"
        )


def _check_type(dtype: np.dtype, path: Path) -> None:
    if dtype.kind not in "iufb":
        raise InputError(f"{path}: voxel type {dtype}: expected integers or real numbers")


def _checked(array: NDArray, affine: Affine, path: Path) -> Volume:
    _check_type(array.dtype, path)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise InputError(f"{path}: {bad} NaN or infinite voxels: expected finite values; repair the image")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"{path}: the affine is singular or not finite: repair the header's geometry")
    return Volume(array, affine)


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


def files_in_order(folder: str | Path) -> list[Path]:
    """Visible regular files of a folder in file-name order, where 2 comes before 10.

    Raises:
        InputError: The folder cannot be listed.
    """
    try:
        files = [p for p in Path(folder).iterdir() if p.is_file() and not p.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}: check the path and its permissions") from error
    # Every second token is a number.
    return sorted(files, key=lambda p: [int(t) if n % 2 else t for n, t in enumerate(re.split(r"([0-9]+)", p.name))])


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
    _check_content(path)
    _check_meta_information(path)
    reader = _sitk_reader(path, _DICOM)
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
        image = _read_sitk(slices[which].path, _DICOM)
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise InputError(f"{slices[which].path}: a colour image: expected one value per pixel")
        array[:, :, k] = _pixels(image).squeeze(axis=2)
    step = (positions[order[-1]] - positions[order[0]]) / (len(order) - 1)
    axes = np.column_stack([direction[:, 0] * first.spacing[0], direction[:, 1] * first.spacing[1], step])
    return _checked(array, _ras_affine(axes, positions[order[0]]), folder), [int(i) for i in order]


def read_png(path: str | Path) -> NDArray[np.uint8]:
    """8-bit grey PNG as `[i, j]` = [column, row], the order of a DICOM slice in a `Volume`.

    Raises:
        InputError: Unreadable, a colour image, or not 8-bit.
    """
    path = Path(path)
    _check_content(path)
    _check_png(path)
    image = _read_sitk(path, "PNGImageIO")
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() != 2:
        raise InputError(f"{path}: a colour PNG: expected one 8-bit grey value per pixel; convert it")
    if image.GetPixelIDTypeAsString() != _UINT8:
        raise InputError(f"{path}: a PNG of {image.GetPixelIDTypeAsString()}: expected 8-bit grey values")
    return _pixels(image)


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


def write_nifti(path: str | Path, volume: Volume) -> None:
    """Writes a NIfTI file whole or not at all."""
    image = nib.Nifti1Image(volume.array, volume.affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as temporary:
        nib.save(image, temporary)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary file beside `path` (same suffixes) and renames it to `path` when the block ends well.

    Nothing is left behind when it does not, so a file is there whole or as it was before.

    Raises:
        InputError: The folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, so that libraries that look at the suffixes see the final name.
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        folder_descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder_descriptor)  # the rename itself
        finally:
            os.close(folder_descriptor)
    except OSError as error:
        reason = error.strerror or _one_line(error)
        raise InputError(f"{path}: could not be written ({reason}): make room or check permissions") from error


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160]


# --- geometry --------------------------------------------------------------------------------------------------------


def same_geometry(a: Grid, b: Grid, tolerance_mm: float = 0.1) -> str | None:
    """Why two grids differ, or None where they agree: same shape, and no corner further apart than the tolerance.

    Headers of one scan often differ by rounding noise; a tenth of a millimetre lies far below any voxel.
    """
    if a.shape != b.shape:
        return f"shape {b.shape}, expected {a.shape}"
    if not np.allclose(a.spacing_mm, b.spacing_mm, atol=1e-3, rtol=1e-3):
        return f"spacing {_mm(b.spacing_mm)}, expected {_mm(a.spacing_mm)}"
    if a.axes != b.axes:
        return f"orientation {b.axes}, expected {a.axes}"
    corners = np.array(list(np.ndindex(2, 2, 2)), np.float64) * (np.asarray(a.shape) - 1)
    apart = float(np.linalg.norm(a.world(corners) - b.world(corners), axis=1).max())
    if apart > tolerance_mm:
        return f"position or direction off by {apart:.2f} mm"
    return None


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
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def resample(volume: Volume, grid: Grid, interpolation: Interpolation, outside: float = 0.0) -> NDArray:
    """Values of a volume at the voxels of another grid.

    Args:
        volume: Any orientation.
        grid: Where values are wanted.
        interpolation: "linear" or "bspline" for images, "nearest"; label maps: `preprocessing.resample_label`.
        outside: Value beyond the volume (NaN marks such voxels).

    Returns:
        Array of `grid.shape`; float32, or the volume's own type for "nearest".
    """
    import SimpleITK as sitk

    array = volume.array
    if interpolation in ("linear", "bspline"):
        array = array.astype(np.float32, copy=False)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(getattr(sitk, _INTERPOLATORS[interpolation]))
    resampler.SetDefaultPixelValue(outside)
    resampler.SetSize([int(n) for n in grid.shape])
    resampler.SetOutputSpacing(list(grid.spacing_mm))
    resampler.SetOutputOrigin(lps[:3, 3].tolist())
    resampler.SetOutputDirection((lps[:3, :3] / np.asarray(grid.spacing_mm)).ravel().tolist())
    return _pixels(resampler.Execute(to_sitk(array, volume.affine)))
