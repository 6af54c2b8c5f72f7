"""Prepared data on disk: one HDF5 file per case and one `dataset.json` with the split.

<data_dir>/dataset.json
<data_dir>/cases/<case_id>.h5      image  float32 [rows, columns, slices]   chunked by slice
                                   label  uint8   [rows, columns, slices]
                                   original_label uint8 [i, j, k]           the scan's own grid and axis order
                                   attributes: case_id, modality, task, spacing_mm, affine, original_affine,
                                   source (file names), source_sha256, image_sha256, label_sha256,
                                   recipe, notes (what was odd in the scan, but handled)

Every byte of a case file that matters is under one of HDF5's checksums: the voxels under fletcher32, everything else
under that of the newest file format. Text has a fixed length, because HDF5 keeps text of variable length without a
checksum, and a damaged one can send it into an endless loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.documents import DEFLATE_RATIO, MALFORMED, plain_name
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import replacing
from ummkd_tf.data.reduction import reduce_image, reduce_label
from ummkd_tf.scans import preprocessing
from ummkd_tf.scans.checks import MAX_VOXELS
from ummkd_tf.scans.geometry import Grid, Volume, reorient
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.tasks import LARGEST_SIZE, Task

FORMAT = 1
CASES = "cases"
"""Folder of a data set's case files."""
_MOST_NOTES, _LONGEST_NOTE = 20, 400  # notes, and characters of each: an attribute holds 64 KiB
_MAX_CHUNK = 4 * LARGEST_SIZE**2  # bytes; the largest slice of an image
_DATASETS = {"image": np.dtype("<f4"), "label": np.dtype("u1"), "original_label": np.dtype("u1")}


@dataclass(frozen=True, kw_only=True)
class CaseHeader:
    """What is known of a prepared scan besides its voxels.

    Attributes:
        case_id: Unique in the data set.
        modality: Its modality's name.
        grid: Where the voxels lie.
        original: Where the scan's own voxels lie.
        notes: What was odd in the scan's files, but handled.
        recipe: `recipe_checksum` of what prepared it; "" where it is not known.
    """

    case_id: str
    modality: str
    grid: Grid
    original: Grid
    notes: tuple[str, ...] = ()
    recipe: str = ""


@dataclass(frozen=True, kw_only=True)
class Case(CaseHeader):
    """One prepared scan.

    Attributes:
        image: float32 [rows, columns, slices].
        label: uint8 class map of the same shape.
        original_label: uint8 class map on `original`, where it was asked for.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    original_label: NDArray[np.uint8] | None = None


def labelled_slices(label: NDArray[np.uint8]) -> tuple[int, int] | None:
    """First and last slice of a class map that holds more than background; None where there is none."""
    found = np.flatnonzero(label.any(axis=(0, 1)))
    return (int(found[0]), int(found[-1])) if found.size else None


def write_case(
    path: Path,
    prepared: Prepared,
    *,
    case_id: str,
    modality: str,
    task: Task,
    source: Mapping[str, str],
    image_sha256: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Writes a prepared, labelled scan whole or not at all.

    Args:
        path: `<data_dir>/cases/<case_id>.h5`.
        prepared: Result of `preprocessing.prepare_scan` with a label.
        case_id: Unique in the data set.
        modality: The scan's modality.
        task: Row of the task table.
        source: sha256 by source file name.
        image_sha256: `voxels_checksum` of the scan; it finds copies under another name.
        notes: As `Case.notes`.
    """
    assert prepared.label is not None and prepared.original_label is not None
    # In memory first, because HDF5 can crash the process when the disk is full.
    buffer = io.BytesIO()
    with _new_file(buffer) as file:
        # By slice, because batches read slices; gzip level 1 is the fastest that still halves the size.
        slice_chunk = (*prepared.image.shape[:2], 1)
        packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
        file.create_dataset("image", data=prepared.image, chunks=slice_chunk, **packed)
        file.create_dataset("label", data=prepared.label, chunks=slice_chunk, **packed)
        file.create_dataset("original_label", data=prepared.original_label, chunks=True, **packed)
        texts = {
            "case_id": case_id,
            "modality": modality,
            "task": task.name,
            "source": json.dumps(sorted(source)),
            "source_sha256": source_checksum(source),
            "image_sha256": image_sha256,
            "label_sha256": voxels_checksum(Volume(prepared.original_label, prepared.original.affine)),
            "recipe": recipe_checksum(task),
            "notes": json.dumps([note[:_LONGEST_NOTE] for note in notes[:_MOST_NOTES]]),
        }
        file.attrs.update(
            {name: np.bytes_(text.encode()) for name, text in texts.items()},
            format=FORMAT,
            spacing_mm=prepared.grid.spacing_mm,
            affine=prepared.grid.affine,
            original_affine=prepared.original.affine,
        )
    buffer.seek(0)
    # In pieces: on a full disk the traceback would keep a view of the whole buffer, which makes Python 3.12.1 crash.
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        shutil.copyfileobj(buffer, stream)


def _new_file(buffer: io.BytesIO) -> h5py.File:
    """Creates a file in the newest HDF5 format, which has checksums, and without time stamps."""
    creation, access = h5py.h5p.create(h5py.h5p.FILE_CREATE), h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    creation.set_obj_track_times(False)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, buffer)
    return h5py.File(h5py.h5f.create(b"case", h5py.h5f.ACC_TRUNC, creation, access))


def source_checksum(source: Mapping[str, str]) -> str:
    """One checksum over the checksums of a case's source files."""
    return hashlib.sha256(json.dumps(sorted(source.items())).encode()).hexdigest()


def voxels_checksum(volume: Volume) -> str:
    """sha256 of a volume's voxels along fixed axes: a copy in another format or with other axes has the same."""
    array = reorient(volume, "LPS").array.T
    digest = hashlib.sha256(str(array.shape).encode())
    for part in array:  # by slice, so that it takes no memory
        digest.update(np.ascontiguousarray(part, "<f4").data)
    return digest.hexdigest()


def file_checksum(path: str | Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def recipe_checksum(task: Task, version: int | None = None) -> str:
    """Checksum of everything that decides how a scan is prepared: the task and the version of the steps.

    Args:
        task: Row of the task table.
        version: As `preprocessing.VERSION`, which is the default.
    """
    recipe = {k: v for k, v in task.to_dict().items() if k not in ("network", "table_classes", "class_colors")}
    recipe["roi"] = recipe.pop("region")  # the field's first name, so that cases prepared with it stay valid
    recipe["steps"] = preprocessing.VERSION if version is None else version
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=dict).encode()).hexdigest()


def preparation_version(recipe: str, task: Task) -> int:
    """Which version of the steps a checksum of `recipe_checksum` is of; 0 where this program knows none."""
    versions = range(preprocessing.VERSION, 0, -1)
    return next((version for version in versions if recipe_checksum(task, version) == recipe), 0)


def case_file(folder: Path, case_id: str) -> Path:
    """File of a case in a folder of cases.

    Raises:
        InputError: The id is not a plain name, so that no id can lead outside the folder.
    """
    return folder / f"{plain_name(case_id)}.h5"


def read_case(path: Path, factor: int = 1, *, original_label: bool = False) -> Case:
    """Reads a prepared case.

    Args:
        path: Its file.
        factor: See `reduced`.
        original_label: Whether to read the class map on the scan's own grid too.

    Raises:
        InputError: Missing, damaged or incomplete file.
    """
    with opened_case(path, factor) as file:
        image = checked_image(file.image[()], path)
        case = Case(
            case_id=file.case_id,
            modality=file.modality,
            image=image,
            label=file.label[()],
            grid=file.grid,
            original=file.original,
            original_label=_dataset(file.file, "original_label")[()] if original_label else None,
            notes=file.notes,
            recipe=file.recipe,
        )
    return reduced(case, factor)


@dataclass(frozen=True, kw_only=True)
class OpenCase(CaseHeader):
    """A case file that is open, whose voxels are still on disk.

    Attributes:
        image: float32 [rows, columns, slices].
        label: uint8 class map of the same shape.
        file: The file itself.
    """

    image: h5py.Dataset
    label: h5py.Dataset
    file: h5py.File


@contextlib.contextmanager
def opened_case(path: Path, factor: int = 1) -> Iterator[OpenCase]:
    """A prepared case, open for reading as much of it as one needs.

    Args:
        path: Its file.
        factor: What rows and columns must be a multiple of.

    Raises:
        InputError: Missing, damaged or incomplete file, also while the block reads voxels.
    """
    with _opened(path) as file:
        image, label = _dataset(file, "image"), _dataset(file, "label")
        affine, original_affine = (_affine(file.attrs[name]) for name in ("affine", "original_affine"))
        notes = tuple(str(note) for note in json.loads(_text(file.attrs.get("notes", "[]"))))
        original_shape = _dataset(file, "original_label").shape
        if image.shape != label.shape:
            raise InputError(
                f"image {image.shape} and label {label.shape} do not fit", where=path, fix="prepare the case again"
            )
        check_factor(image.shape, factor, path)
        yield OpenCase(
            case_id=_text(file.attrs["case_id"]),
            modality=_text(file.attrs["modality"]),
            image=image,
            label=label,
            grid=Grid(affine, image.shape),
            original=Grid(original_affine, original_shape),
            notes=notes,
            recipe=_text(file.attrs["recipe"]),
            file=file,
        )


def check_factor(shape: Sequence[int], factor: int, path: Path) -> None:
    """Checks that rows and columns are a multiple of an in-plane reduction.

    Raises:
        InputError: They are not.
    """
    if shape[0] % factor or shape[1] % factor:
        raise InputError(
            f"image {shape}", where=path, fix=f"expected rows and columns to reduce by {factor}; prepare it again"
        )


def check_identity(case: CaseHeader, case_id: str, modality: str, path: Path, recipe: str = "") -> None:
    """Checks that a file holds the case that the data set names, prepared by its recipe where that is known.

    Raises:
        InputError: It holds another, or was prepared otherwise.
    """
    if (case.case_id, case.modality) != (case_id, modality):
        raise InputError(
            f"holds case {case.case_id!r} of modality {case.modality!r}",
            where=path,
            fix=f"expected {case_id!r} of {modality!r}; prepare the case again",
        )
    check_recipe(case.recipe, recipe, path)


def check_recipe(found: str, expected: str, path: Path) -> None:
    """Checks that a case was prepared by a recipe; "" stands for one that is not known.

    Raises:
        InputError: It was not.
    """
    if expected and found != expected:
        raise InputError(
            "prepared otherwise than the data set: for another task, or by another version of the steps",
            where=path,
            fix="prepare the data again with the same command",
        )


def check_values(label: NDArray[np.uint8], task: Task, path: Path) -> NDArray[np.uint8]:
    """Returns a class map, or the values in it, once they are checked.

    Raises:
        InputError: A value that the task does not have.
    """
    if label.max() >= task.num_classes:
        raise InputError(
            f"label value {label.max()}, but task {task.name} has values 0 to {task.num_classes - 1}",
            where=path,
            fix="prepare the data again",
        )
    return label


def checked_image(image: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    """Returns an image once its voxels are checked.

    Raises:
        InputError: NaN or infinite ones.
    """
    if not np.isfinite(image).all():
        raise InputError(
            "the image has NaN or infinite voxels", where=path, fix="expected finite ones; prepare the case again"
        )
    return image


def reduced(case: Case, factor: int) -> Case:
    """The case with rows and columns `factor` times coarser, for the reduced presets."""
    if factor == 1:
        return case
    image, label = reduce_image(case.image, factor), reduce_label(case.label, factor)
    return replace(case, image=image, label=label, grid=reduced_grid(case.grid, factor))


def reduced_grid(grid: Grid, factor: int) -> Grid:
    """The grid of the same voxels with rows and columns `factor` times coarser."""
    # A block's centre lies (factor - 1) / 2 voxels after its first voxel.
    to_fine = np.diag([factor, factor, 1.0, 1.0])
    to_fine[:2, 3] = (factor - 1) / 2
    rows, columns, slices = grid.shape
    return Grid(grid.affine @ to_fine, (rows // factor, columns // factor, slices))


def is_current(path: Path, *, case_id: str, modality: str, task: Task, source: Mapping[str, str]) -> bool:
    """Whether a file holds a case, undamaged, as `write_case` would write it with these arguments."""
    with contextlib.suppress(InputError, OSError):
        found = read_checksums(path)
        if (found.source, found.recipe) == (source_checksum(source), recipe_checksum(task)):
            check_identity(read_case(path, original_label=True), case_id, modality, path)
            return True
    return False


@dataclass(frozen=True, kw_only=True)
class Checksums:
    """What a case file says of its origin.

    Attributes:
        source: `source_checksum` of the files it was prepared from.
        recipe: `recipe_checksum` of how.
        image: `voxels_checksum` of the scan, whatever its format; "" where the file does not say.
        label: `voxels_checksum` of the label map as task classes; "" where the file does not say.
    """

    source: str
    recipe: str
    image: str
    label: str


def read_checksums(path: Path) -> Checksums:
    """Checksums of a case, of which no voxel is read.

    Raises:
        InputError: Missing or damaged file.
    """
    with _opened(path) as file:
        return Checksums(
            source=_text(file.attrs["source_sha256"]),
            recipe=_text(file.attrs["recipe"]),
            image=_text(file.attrs.get("image_sha256", "")),
            label=_text(file.attrs.get("label_sha256", "")),
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Opens a case file and checks it; every failure, also a later one while reading, becomes one clear line."""
    if not path.is_file():
        raise InputError("missing case file", where=path, fix="prepare the data again")
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError("not a readable HDF5 file", where=path, fix="delete it and prepare the case again") from error
    with file:
        try:
            _check_file(path, file)
            yield file
        except InputError:
            raise
        except (*MALFORMED, RuntimeError) as error:
            raise InputError("damaged or incomplete case file", where=path, fix="prepare the case again") from error


def _check_file(path: Path, file: h5py.File) -> None:
    for name in file:
        # A link could lead to any file on the machine.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise InputError(
                f"{name!r} is a link", where=path, fix="expected data in the file itself; prepare it again"
            )
    found = file.attrs.get("format", "none")
    if found != FORMAT:
        raise InputError(f"case format {found}, expected {FORMAT}", where=path, fix="prepare the data again")


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Checks that an HDF5 data set is what `write_case` writes, and not larger than a file of this size can hold.

    Raises:
        ValueError, OSError, …: It is not; `_opened` turns the error into one line.
    """
    data = file[name]
    if data.external or data.is_virtual:
        raise ValueError(f"{name} lies outside the file")
    if data.ndim != 3 or data.dtype != _DATASETS[name] or not 0 < data.size <= MAX_VOXELS:
        raise ValueError(f"{name} is {data.dtype} {data.shape}")
    if data.chunks and math.prod(data.chunks) * data.dtype.itemsize > _MAX_CHUNK:
        raise ValueError(f"{name} has chunks of {data.chunks}")
    if data.nbytes > DEFLATE_RATIO * data.id.get_storage_size():
        raise ValueError(f"{name} has too little content for {data.shape}")
    return data


def _affine(value: NDArray) -> NDArray[np.float64]:
    affine = np.asarray(value, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError("the affine is not an invertible 4×4 matrix of finite numbers")
    return affine
