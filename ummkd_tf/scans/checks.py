"""Checks that every image format shares."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import check_exists
from ummkd_tf.scans.geometry import Affine, Volume

MAX_VOXELS = 2**29
"""The largest image (512 × 512 × 2048), our choice: 2 GiB as float32. A larger one is refused before memory is
allocated."""


# Files that a failed download or copy leaves instead of a scan: their first bytes, and the message.
_FOREIGN = (
    (rb"version https://git-lfs", "a Git-LFS pointer, expected the file it stands for: run 'git lfs pull'"),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)",
        "a web page, expected a scan: download it again, signed in if the site asks for it",
    ),
    (rb"PK\x03\x04", "a zip archive, expected the file inside: unpack it"),
    (rb"Rar!|7z\xbc\xaf|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd", "a packed file, expected the file inside: unpack it"),
    (
        rb"/?(\.\./)*(\.git/)?annex/objects/",
        "a git-annex pointer, expected the file it stands for: run 'git annex get'",
    ),
    (rb"(\xef\xbb\xbf)?\s*[<{\[]", "a text of XML or JSON, perhaps a server's error message: download it again"),
)


def check_content(path: Path) -> None:
    """Refuses a file that is not there, cannot be read, is empty, or plainly is something else.

    Raises:
        InputError: Says which.
    """
    check_exists(path)
    if not os.access(path, os.R_OK):
        raise InputError("not readable", where=path, fix="check the file's permissions")
    if path.stat().st_size == 0:
        raise InputError("empty file (0 bytes)", where=path, fix="copy or download it again")
    with open(path, "rb") as stream:
        head = stream.read(256)
    for pattern, problem in _FOREIGN:
        if re.match(pattern, head) and head[128:132] != b"DICM":
            raise InputError(problem, where=path)


def check_size(path: Path, shape: Sequence[int], value_bytes: int, stored_bytes: int) -> None:
    """Refuses an image that its header makes larger than the file can hold, before memory is allocated."""
    voxels = math.prod(shape)
    if min(shape, default=0) < 1:
        raise InputError(
            f"an image of shape {tuple(shape)}", where=path, fix="expected at least one voxel; copy it again"
        )
    if voxels > MAX_VOXELS:
        raise InputError(
            f"an image of shape {tuple(shape)}, {voxels:.1e} voxels",
            where=path,
            fix=f"expected at most {MAX_VOXELS:.1e}, as 512 × 512 × 2048; crop or reduce it",
        )
    if voxels * value_bytes > stored_bytes:
        raise InputError(
            f"damaged or truncated: the header tells of shape {tuple(shape)}, and the file is too short for it",
            where=path,
            fix="copy it again",
        )


def one_volume(shape: Sequence[int], path: Path) -> tuple[int, int, int]:
    """The shape of a 3D image, without further axes of length 1."""
    if len(shape) < 3 or max(shape[3:], default=1) > 1:
        raise InputError(
            f"{len(shape)}D image of shape {tuple(shape)}",
            where=path,
            fix="expected 3D; give one volume (a 4D file must be split)",
        )
    i, j, k = shape[:3]
    return i, j, k


def check_type(dtype: np.dtype, path: Path) -> None:
    """Refuses values that are no numbers, as colours are.

    Raises:
        InputError: Such a type.
    """
    if dtype.kind not in "iufb":
        raise InputError(f"voxel type {dtype}", where=path, fix="expected integers or real numbers")


def checked(array: NDArray, affine: Affine, path: Path) -> Volume:
    """A volume as every reader gives it: floating-point values are float32.

    Raises:
        InputError: As `check_type`, NaN or infinite voxels, or an affine that places no voxel.
    """
    check_type(array.dtype, path)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise InputError(
                f"{bad} NaN or infinite voxels", where=path, fix="expected finite values; repair the image"
            )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError("the affine is singular or not finite", where=path, fix="repair the header's geometry")
    return Volume(array, affine)
