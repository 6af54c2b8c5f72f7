"""The authors' released test volumes: `.npz` files, or the pairs of NIfTI files they are made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.documents import read_npz
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import check_exists
from ummkd_tf.released.records import SHAPE, checked_image, checked_label, without_outside
from ummkd_tf.scans.geometry import Affine, Grid, Volume, reorient
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.scans.reading import read_volume
from ummkd_tf.tasks import Task

_NIFTI = (".nii.gz", ".nii")
_DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}  # RAS


def read_test_volume(path: str | Path) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Reads a test volume and its label, turned as the training records are.

    Args:
        path: `.npz` with `arr_0` (image) and `arr_1` (label), or `image_*.nii.gz` beside its `gth_*.nii.gz`.

    Returns:
        (image, label): float32 and uint8 [256, 256, slices], labels 0..5; flipped along rows and columns against the
        file, as the authors' test code does.

    Raises:
        InputError: Unreadable, other shapes, a value that is not finite, or no such label.
    """
    path = Path(path)
    image, label = _read_npz(path) if path.suffix == ".npz" else _read_pair(path)
    if image.shape != label.shape or image.ndim != 3 or image.shape[:2] != SHAPE[:2] or not image.shape[2]:
        raise InputError(
            f"image {image.shape} and label {label.shape}",
            where=path,
            fix=f"expected both as {SHAPE[:2]} and slices; use the authors' released files",
        )
    if image.dtype.kind not in "iuf" or label.dtype.kind not in "iuf":
        raise InputError(
            f"values of type {image.dtype} and {label.dtype}", where=path, fix="expected numbers; copy it again"
        )
    image, label = (np.ascontiguousarray(np.flip(array, (0, 1))) for array in (image, label))
    return checked_image(image, path), checked_label(label, path)


def _read_npz(path: Path) -> tuple[NDArray, NDArray]:
    check_exists(path)
    try:
        content = read_npz(path, ("arr_0", "arr_1"))
    except KeyError as error:
        raise InputError(
            "no arr_0 and arr_1", where=path, fix="expected an image and its label; use the released file"
        ) from error
    return content["arr_0"], content["arr_1"]


def _read_pair(path: Path) -> tuple[NDArray, NDArray]:
    if not path.name.startswith("image") or not path.name.endswith(_NIFTI):
        raise InputError(
            "not a test volume", where=path, fix="expected *.npz, or image_*.nii.gz beside its gth_*.nii.gz"
        )
    return read_volume(path).array, read_volume(label_file(path)).array


def label_file(image: Path) -> Path:
    """`gth_…` that belongs to `image_…` (NIfTI)."""
    return image.with_name("gth" + image.name.removeprefix("image"))


def reference_file(path: Path) -> Path | None:
    """NIfTI file that tells where a test volume lies: the volume itself, or `<name>_ref.nii.gz` or `<name>.nii.gz`
    beside `<name>.npz`; None where there is none."""
    if path.name.endswith(_NIFTI):
        return path
    names = (f"{path.stem}{suffix}{kind}" for suffix in ("_ref", "") for kind in _NIFTI)
    return next((file for name in names if (file := path.with_name(name)).is_file()), None)


def volume_files(path: Path) -> list[Path]:
    """All files a test volume is read from."""
    files = [path, path if path.suffix == ".npz" else label_file(path), reference_file(path) or path]
    return list(dict.fromkeys(files))


def prepare_test_volume(path: Path, task: Task) -> Prepared:
    """A test volume as a prepared scan; its voxels stay as `read_test_volume` gives them, `OUTSIDE` is background.

    The reference NIfTI gives spacing and place, and `original` is its grid. Without one, the task's spacing and axes
    are assumed (1 mm; "about 1 mm isotropic", Sec. IV-A). No axis is turned to the task's in either case, because a
    network trained on the records expects theirs.

    Raises:
        InputError: As `read_test_volume` and `place`.
    """
    image, label = read_test_volume(path)
    classes = without_outside(label)
    reference = reference_file(path)
    if reference is None:
        affine = np.eye(4)
        affine[:3, :3] = np.transpose([_DIRECTIONS[letter] for letter in task.axes]) * task.spacing_mm
        grid = Grid(affine, image.shape)
        return Prepared(image, classes, grid, grid, classes)
    scan = read_volume(reference)
    affine = place(image, label, scan, reference)
    original = reorient(Volume(classes, affine), scan.grid.axes)
    return Prepared(image, classes, Grid(affine, image.shape), original.grid, original.array)


def place(image: NDArray, label: NDArray, scan: Volume, reference: Path) -> Affine:
    """Affine of a turned test volume, from its reference NIfTI.

    Two axis orders occur, told apart by shape, or by content where the shape fits both. Files made with the group's
    `savenpz.py` keep the NIfTI's own order, so the turned voxel [i, j, k] is the NIfTI's [255-i, 255-j, k]. The
    released test code writes its (turned) results through SimpleITK with the reference's geometry, so there [i, j, k]
    is the reference's [k, j, i].

    Args:
        image: Turned image [256, 256, slices].
        label: Turned label of the same shape.
        scan: The reference.
        reference: Its file, for messages.

    Raises:
        InputError: No order fits, or both do.
    """
    half_turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    half_turn[:2, 3] = np.asarray(SHAPE[:2]) - 1
    orders = [
        (np.flip(scan.array, (0, 1)), scan.affine @ half_turn),
        (scan.array.T, scan.affine[:, [2, 1, 0, 3]]),
    ]
    fitting = [(array, affine) for array, affine in orders if array.shape == image.shape]
    if len(fitting) > 1:
        fitting = [(a, affine) for a, affine in fitting if np.array_equal(a, image) or np.array_equal(a, label)]
    if len(fitting) != 1:
        problem = "both axis orders fit" if scan.array.shape == image.shape else f"shape {scan.array.shape}"
        raise InputError(
            problem,
            where=reference,
            fix=(
                f"expected the test volume's image or label itself, or shape {image.shape[::-1]}; remove the file"
                " to assume 1 mm voxels"
            ),
        )
    return fitting[0][1]
