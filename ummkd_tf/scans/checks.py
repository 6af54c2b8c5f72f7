"""Checks that every image format shares."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.scans.geometry import Affine, Volume

MAX_VOXELS = 2**29
"""Of one image (512 × 512 × 2048), our choice: 2 GiB as float32. More is refused before memory is taken for it."""


def check_content(path: Path) -> None:
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: not readable: check the file's permissions")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: empty file (0 bytes): copy or download it again")


def check_size(path: Path, shape: Sequence[int], value_bytes: int, stored_bytes: int) -> None:
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


def check_rank(rank: int, shape: Sequence[int], path: Path) -> None:
    if rank != 3:
        raise InputError(
            f"{path}: {rank}D image of shape {tuple(shape)}: expected 3D; give one volume (a 4D file must be split)"
        )


def check_type(dtype: np.dtype, path: Path) -> None:
    if dtype.kind not in "iufb":
        raise InputError(f"{path}: voxel type {dtype}: expected integers or real numbers")


def checked(array: NDArray, affine: Affine, path: Path) -> Volume:
    check_type(array.dtype, path)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise InputError(f"{path}: {bad} NaN or infinite voxels: expected finite values; repair the image")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"{path}: the affine is singular or not finite: repair the header's geometry")
    return Volume(array, affine)
