"""NIfTI files."""

from __future__ import annotations

import gzip
import logging
import math
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.documents import DEFLATE_RATIO
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import last_line, replacing
from ummkd_tf.scans.checks import check_size, check_type, checked, one_volume
from ummkd_tf.scans.geometry import Grid, Volume, orthonormalized, same_geometry

_LOG = logging.getLogger(__name__)
# nibabel logs what it corrects in a header; our own checks cover what matters
_QUIET = logging.getLogger(f"{__name__}.nibabel")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False

_GZIP = b"\x1f\x8b"
# labels whose slope is at most this are rounded, where rounding by the slope explains their fractions
_FINE_STEP = 0.1
_MAX_PADDING = 512  # bytes after a NIfTI image; more means that its header and its data do not belong together


def read_nifti(path: Path, labels: bool = False) -> Volume:
    """Reads the voxels without nibabel, which stops before the gzip checksum and allocates any size that a header
    claims.

    Args:
        path: The file, packed or not, whatever its name says; `check_content` has looked at it.
        labels: Whole numbers are meant: those that were stored in fine steps (with a slope) become whole again.

    Raises:
        InputError: Damaged, not 3D, without an orientation, not in mm, or as `checked`.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == _GZIP  # whatever the name says
            file.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            header = _nifti_header(stream)
            shape, dtype = header.get_data_shape(), header.get_data_dtype()
            volume_shape = one_volume(shape, path)
            if (int(header["sform_code"]), int(header["qform_code"])) == (0, 0):
                raise InputError(
                    "the header gives no orientation (sform_code and qform_code are 0), so left and right are unknown",
                    where=path,
                    fix="write the file again with its affine",
                )
            unit = header.get_xyzt_units()[0]
            if unit not in ("mm", "unknown"):
                raise InputError(
                    f"the header gives distances in {unit}", where=path, fix="expected mm; write the file again in mm"
                )
            check_type(dtype, path)
            check_size(path, shape, dtype.itemsize, path.stat().st_size * (DEFLATE_RATIO if packed else 1))
            smallest = header.template_dtype.itemsize + 4  # header and extension flags; an offset of 0 means this
            _skip(stream, (header.get_data_offset() or smallest) - header.template_dtype.itemsize)
            voxels = _exactly(stream, math.prod(shape) * dtype.itemsize)
            # Reading to the end compares the gzip checksum; the limit stops a file that unpacks to endless data.
            if len(stream.read(_MAX_PADDING + 1)) > _MAX_PADDING:
                raise ValueError("more data than the header tells of")
        array = np.frombuffer(voxels, dtype).reshape(volume_shape, order="F")
        with np.errstate(all="ignore"):  # what becomes infinite is an error below
            slope, intercept = header.get_slope_inter()
            if slope is not None and (slope, intercept) != (1, 0):
                array = _scaled(array, np.float64(slope), np.float64(intercept), labels)
        affine = np.asarray(header.get_best_affine(), np.float64)
        _compare_forms(header, volume_shape, path)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError("no memory for its voxels", where=path, fix="free some, or crop the image") from error
    except Exception as error:  # damaged files raise many kinds of errors
        raise InputError(
            f"damaged or truncated NIfTI file ({last_line(error)})", where=path, fix="copy it again"
        ) from error
    return checked(array, affine, path)


def _scaled(stored: NDArray, slope: np.float64, intercept: np.float64, labels: bool) -> NDArray[np.float32]:
    """Stored values × slope + intercept; slice by slice, because in float64 all of them take twice the memory of the
    result."""
    array = np.empty(stored.shape, np.float32, order="F")
    rounding = 0.0
    for k in range(stored.shape[2]):
        values = nib.volumeutils.apply_read_scaling(stored[:, :, k], slope, intercept)
        array[:, :, k] = values
        if labels:
            rounding = max(rounding, float(np.abs(values - np.round(values)).max()))
    if labels and abs(slope) <= _FINE_STEP and rounding <= 0.501 * abs(slope):
        np.round(array, out=array)
    return array


def _compare_forms(header: nib.Nifti1Header, shape: tuple[int, int, int], path: Path) -> None:
    """Logs where the sform and the qform of a header differ. The sform counts, as in nibabel; ITK can prefer the
    qform."""
    sform = header.get_sform(coded=True)[0]
    try:
        qform = header.get_qform(coded=True)[0]
    except (ValueError, nib.spatialimages.HeaderDataError) as error:  # of no use, as the sform counts
        _LOG.warning("%s: its qform is damaged (%s); the sform is used", path, last_line(error))
        return
    difference = None if sform is None or qform is None else same_geometry(Grid(sform, shape), Grid(qform, shape))
    if difference:
        _LOG.warning("%s: its qform has %s, the sform; the sform is used", path, difference)
    stated, used = header["pixdim"][1:4], None if sform is None else Grid(sform, shape).spacing_mm
    if qform is None and used is not None and not np.allclose(stated, used, rtol=0.01, atol=1e-3):
        sizes = [" × ".join(f"{size:.4g}" for size in voxel) for voxel in (stated, used)]
        _LOG.warning("%s: its pixdim has voxels of %s mm, its sform of %s mm; the sform is used", path, *sizes)


def _nifti_header(stream: BinaryIO) -> nib.Nifti1Header:
    """Header of either version, without its extensions: their sizes are not to be trusted, and nothing is in them."""
    block = _exactly(stream, nib.Nifti1Header.template_dtype.itemsize)
    size = nib.Nifti2Header.template_dtype.itemsize
    second = size in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big"))
    if second:
        block += _exactly(stream, size - len(block))
    header = (nib.Nifti2Header if second else nib.Nifti1Header)(bytes(block), check=False)
    if not int(header["sform_code"]) > 0 and not (header["pixdim"][1:4] > 0).all():  # nibabel would make them 1 mm
        raise ValueError(f"voxels of {' × '.join(f'{v:g}' for v in header['pixdim'][1:4])} mm")
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


def write_nifti(path: str | Path, volume: Volume) -> None:
    """Writes a NIfTI file whole or not at all, with its place in the sform as in the qform.

    Its directions are orthonormal, since ITK and what is built on it refuse others.

    Raises:
        ValueError: A tilted grid, which a qform cannot say; `geometry.straightened` gives one that it can.
    """
    grid = orthonormalized(volume.grid)
    if grid is None:
        raise ValueError("a NIfTI file for all readers needs perpendicular axes")
    image = nib.Nifti1Image(volume.array, grid.affine)
    image.set_sform(grid.affine, "scanner")
    image.set_qform(grid.affine, "scanner")
    image.header.set_xyzt_units("mm")
    with replacing(path) as temporary:
        nib.save(image, temporary)
