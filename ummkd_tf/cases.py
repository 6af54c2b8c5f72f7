"""Prepared data on disk: one HDF5 file per case and one `dataset.json` with the split.

<data_dir>/dataset.json
<data_dir>/cases/<case_id>.h5      image  float32 [rows, columns, slices]   chunked by slice
                                   label  uint8   [rows, columns, slices]
                                   original_label uint8 [i, j, k]           the scan's own grid and axis order
                                   attributes: case_id, modality, task, spacing_mm, affine, original_affine,
                                   source (file names), source_sha256, recipe

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import h5py
import numpy as np
from numpy.typing import NDArray

from ummkd_tf import preprocessing
from ummkd_tf.documents import DEFLATE_RATIO, MALFORMED, plain_name, read_json, strings
from ummkd_tf.errors import InputError
from ummkd_tf.preprocessing import Prepared, reduce_image, reduce_label
from ummkd_tf.settings import SHARED, are_modality_names
from ummkd_tf.tasks import Task, get_task
from ummkd_tf.volumes import MAX_VOXELS, Grid, replacing

if TYPE_CHECKING:
    from ummkd_tf.inference import Predictor
    from ummkd_tf.sampling import Examples

DATASET, RELEASED = "dataset.json", "released.json"
PARTS = ("train", "validation", "test")
FORMAT = 1
_MAX_CHUNK = 2**20  # bytes; h5py chooses none larger, and nor do we
_DATASETS = {"image": np.dtype("<f4"), "label": np.dtype("u1"), "original_label": np.dtype("u1")}


@dataclass(frozen=True)
class Case:
    """One prepared scan.

    Attributes:
        case_id: Unique in the data set.
        modality: Its modality's name.
        image: float32 [rows, columns, slices].
        label: uint8 class map of the same shape.
        grid: Where the voxels lie.
        original: Where the scan's own voxels lie.
        factor: In-plane reduction against the file (1 = as prepared).
    """

    case_id: str
    modality: str
    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    grid: Grid
    original: Grid
    factor: int = 1


def write_case(
    path: Path, prepared: Prepared, *, case_id: str, modality: str, task: Task, source: Mapping[str, str]
) -> None:
    """Writes a prepared, labelled scan whole or not at all.

    Args:
        path: `<data_dir>/cases/<case_id>.h5`.
        prepared: Result of `preprocessing.prepare` with a label.
        case_id: Unique in the data set.
        modality: The scan's modality.
        task: Row of the task table.
        source: sha256 by source file name.
    """
    assert prepared.label is not None and prepared.original_label is not None
    # In memory first, because HDF5 can bring the process down when the disk is full.
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
            "recipe": recipe_checksum(task),
        }
        file.attrs.update(
            {name: np.bytes_(text.encode()) for name, text in texts.items()},
            format=FORMAT,
            spacing_mm=prepared.grid.spacing_mm,
            affine=prepared.grid.affine,
            original_affine=prepared.original.affine,
        )
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _new_file(buffer: io.BytesIO) -> h5py.File:
    """Of the newest file format, for its checksums, and without the time of day."""
    creation, access = h5py.h5p.create(h5py.h5p.FILE_CREATE), h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    creation.set_obj_track_times(False)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, buffer)
    return h5py.File(h5py.h5f.create(b"case", h5py.h5f.ACC_TRUNC, creation, access))


def source_checksum(source: Mapping[str, str]) -> str:
    """One checksum over the checksums of a case's source files."""
    return hashlib.sha256(json.dumps(sorted(source.items())).encode()).hexdigest()


def file_checksum(path: str | Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def recipe_checksum(task: Task) -> str:
    """Checksum of everything that decides how a scan is prepared: the task table and the version of the steps."""
    recipe = {k: v for k, v in asdict(task).items() if k not in ("network", "table_classes", "class_colors")}
    recipe["steps"] = preprocessing.VERSION
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=dict).encode()).hexdigest()


def read_case(path: Path, factor: int = 1) -> Case:
    """Reads a prepared case; `factor` > 1 reduces it in the plane for the reduced presets.

    Raises:
        InputError: Missing, damaged or incomplete file.
    """
    with _opened(path) as file:
        image, label = _voxels(file, "image"), _voxels(file, "label")
        case_id, modality = (_text(file.attrs[name]) for name in ("case_id", "modality"))
        affine, original_affine = (_affine(file.attrs[name]) for name in ("affine", "original_affine"))
        original_shape = _dataset(file, "original_label").shape
    if image.shape != label.shape:
        raise InputError(f"{path}: image {image.shape} and label {label.shape} do not fit: prepare the case again")
    if not np.isfinite(image).all():
        raise InputError(f"{path}: the image has NaN or infinite voxels: expected finite ones; prepare the case again")
    if image.shape[0] % factor or image.shape[1] % factor:
        raise InputError(
            f"{path}: image {image.shape}: expected rows and columns to reduce by {factor}; prepare it again"
        )
    image, label = reduce_image(image, factor), reduce_label(label, factor)
    if factor > 1:
        # A block's centre lies (factor - 1) / 2 voxels after its first voxel.
        to_fine = np.diag([factor, factor, 1.0, 1.0])
        to_fine[:2, 3] = (factor - 1) / 2
        affine = affine @ to_fine
    return Case(
        case_id=case_id,
        modality=modality,
        image=image,
        label=label,
        grid=Grid(affine, image.shape),
        original=Grid(original_affine, original_shape),
        factor=factor,
    )


def read_original_label(path: Path) -> NDArray[np.uint8]:
    """Class map on the scan's own grid."""
    with _opened(path) as file:
        return _voxels(file, "original_label")


def read_source_checksum(path: Path) -> tuple[str, str]:
    """(source, recipe) checksums a case was prepared with."""
    with _opened(path) as file:
        return _text(file.attrs["source_sha256"]), _text(file.attrs["recipe"])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """A checked case file for reading, whose every failure, also while reading, is one clear line."""
    if not path.is_file():
        raise InputError(f"{path}: missing case file: prepare the data again")
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: not a readable HDF5 file: delete it and prepare the case again") from error
    with file:
        try:
            _check_file(path, file)
            yield file
        except InputError:
            raise
        except (*MALFORMED, RuntimeError) as error:
            raise InputError(f"{path}: damaged or incomplete case file: prepare the case again") from error


def _check_file(path: Path, file: h5py.File) -> None:
    for name in file:
        # A link could lead to any file on the machine.
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise InputError(f"{path}: {name!r} is a link: expected data in the file itself; prepare it again")
    found = file.attrs.get("format", "none")
    if found != FORMAT:
        raise InputError(f"{path}: case format {found}, expected {FORMAT}: prepare the data again")


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A data set that is what `write_case` writes, and no larger than the file can stand for.

    Raises:
        ValueError, OSError, …: It is not; `_opened` makes one line of it.
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


def _voxels(file: h5py.File, name: str) -> NDArray:
    return _dataset(file, name)[()]


def _affine(value: NDArray) -> NDArray[np.float64]:
    affine = np.asarray(value, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError("an affine that is none")
    return affine


@dataclass(frozen=True)
class Dataset:
    """A folder of prepared cases.

    Attributes:
        directory: The folder.
        task: Row of the task table.
        modalities: Names, in the order batches use.
        case_modality: Modality of every case.
        split: Case ids by part ("train", "validation", "test").
        split_name: Where the split comes from.
        source: Where the scans come from; "phantom …" for generated ones.
    """

    directory: Path
    task: Task
    modalities: tuple[str, ...]
    case_modality: Mapping[str, str]
    split: Mapping[str, tuple[str, ...]]
    split_name: str
    source: str

    unit: ClassVar[str] = "cases"  # what the ids of the train part name

    @classmethod
    def load(cls, directory: str | Path) -> Dataset:
        """Reads `dataset.json` and checks it against the case files.

        Raises:
            InputError: No data set, a missing case file, or an inconsistent split.
        """
        directory = Path(directory)
        path = directory / DATASET
        if not path.is_file():
            raise InputError(f"{path}: no prepared data set: run one of the prepare targets, or check --data_dir")
        try:
            content = read_json(path)
            dataset = cls(
                directory=directory,
                task=get_task(str(content["task"])),
                modalities=strings(content["modalities"]),
                case_modality={c: str(entry["modality"]) for c, entry in content["cases"].items()},
                split={part: strings(content["split"][part]) for part in PARTS},
                split_name=content["split_name"],
                source=content.get("source", ""),
            )
        except InputError:
            raise
        except MALFORMED as error:
            raise InputError(f"{path}: not a data set description ({error!r}): prepare the data again") from error
        check_split(dataset.split, dataset.case_modality, dataset.modalities, path)
        for case_id in dataset.case_modality:
            if not dataset.path(case_id).is_file():
                raise InputError(f"{dataset.path(case_id)}: missing case file: prepare the data again")
        return dataset

    def path(self, case_id: str) -> Path:
        """HDF5 file of a case.

        Raises:
            InputError: The id is not a plain name, so that no id can lead outside the folder.
        """
        return self.directory / "cases" / f"{plain_name(case_id)}.h5"

    def case(self, case_id: str, factor: int = 1) -> Case:
        """Reads one case, reduced in the plane by `factor`.

        Raises:
            InputError: As `read_case`, or the file holds another case, or what the task does not have.
        """
        case = read_case(self.path(case_id), factor)
        if (case.case_id, case.modality) != (case_id, self.case_modality[case_id]):
            raise InputError(
                f"{self.path(case_id)}: holds case {case.case_id!r} of modality {case.modality!r}: expected "
                f"{case_id!r} of {self.case_modality[case_id]!r}; prepare the case again"
            )
        if case.label.max() >= self.task.num_classes:
            raise InputError(
                f"{self.path(case_id)}: label value {case.label.max()}, but task {self.task.name} has values "
                f"0 to {self.task.num_classes - 1}: prepare the data again"
            )
        return case

    def ids(self, part: str, modality: str | None = None) -> list[str]:
        """Case ids of a part, of one modality or of all in the order of `modalities`."""
        wanted = self.modalities if modality is None else (modality,)
        return [c for m in wanted for c in self.split[part] if self.case_modality[c] == m]

    def examples(self, modality: str, rank: int, factor: int = 1) -> Examples:
        """Training examples of a modality for the 2D (rank 2) or 3D network, reduced in the plane by `factor`."""
        from ummkd_tf.sampling import PatchExamples, SliceExamples

        kind = SliceExamples if rank == 2 else PatchExamples
        return kind(self._same_size("train", modality, factor))

    def validation(self, predictor: Predictor, factor: int = 1) -> Callable[[], dict[str, float]] | None:
        """What computes the score of the validation part, see `evaluation.mean_dice`; None where there is no part."""
        from ummkd_tf.evaluation import mean_dice

        cases = self._same_size("validation", None, factor)
        return lambda: mean_dice(predictor, cases)

    def _same_size(self, part: str, modality: str | None, factor: int) -> list[Case]:
        """Cases of a part, whose slices must all have the task's size, or they cannot be in one batch."""
        size = tuple(n // factor for n in self.task.size)
        cases = [self.case(c, factor) for c in self.ids(part, modality)]
        for case in cases:
            if case.image.shape[:2] != size:
                raise InputError(
                    f"{self.path(case.case_id)}: slices of {case.image.shape[:2]}, reduced by {factor}: expected "
                    f"{size} in task {self.task.name}; prepare the data again"
                )
        return cases

    @property
    def split_checksum(self) -> str:
        """sha256 of the split, so that two runs can be shown to use the same one."""
        return hashlib.sha256(json.dumps(self.split, sort_keys=True).encode()).hexdigest()


def open_dataset(directory: str | Path) -> Dataset:
    """The data set in a folder: prepared cases (`dataset.json`) or the authors' released files (`released.json`).

    Raises:
        InputError: None, both, or an inconsistent one.
    """
    from ummkd_tf.released import ReleasedDataset

    prepared, released = ((Path(directory) / name).is_file() for name in (DATASET, RELEASED))
    if prepared and released:
        raise InputError(f"{directory}: holds {DATASET} and {RELEASED}: expected one data set; remove one of the two")
    return ReleasedDataset.load(directory) if released else Dataset.load(directory)


def write_dataset(
    directory: Path,
    *,
    task: Task,
    case_modality: Mapping[str, str],
    split: Mapping[str, Sequence[str]],
    split_name: str,
    modalities: Iterable[str] | None = None,
    source: str = "",
) -> None:
    """Writes `dataset.json` for the cases prepared in `directory`.

    Raises:
        InputError: As `check_split`.
    """
    path = directory / DATASET
    names = tuple(modalities) if modalities is not None else tuple(dict.fromkeys(sorted(case_modality.values())))
    check_split(split, case_modality, names, path)
    content = {
        "format": FORMAT,
        "task": task.name,
        "classes": list(task.class_names),
        "modalities": list(names),
        "axes": task.axes,
        "spacing_mm": list(task.spacing_mm),
        "size": list(task.size),
        "recipe": recipe_checksum(task),
        "source": source,
        "cases": {c: {"modality": case_modality[c], "file": f"cases/{c}.h5"} for c in sorted(case_modality)},
        "split_name": split_name,
        "split": {part: list(split.get(part, ())) for part in PARTS},
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_split(
    split: Mapping[str, Sequence[str]], case_modality: Mapping[str, str], modalities: Sequence[str], where: object
) -> None:
    """Proper modalities, no case twice, none unknown, and every modality present in every part.

    Raises:
        InputError: Otherwise.
    """
    if not are_modality_names(modalities):
        raise InputError(
            f"{where}: modalities {', '.join(modalities) or 'none'}: expected different plain names like ct and mr, "
            f"and not {SHARED}; rename them where the data come from, and prepare again"
        )
    seen: dict[str, str] = {}
    for part in PARTS:
        for case_id in split.get(part, ()):
            if case_id not in case_modality:
                raise InputError(f"{where}: the split's {part} part names {case_id!r}, which is not among the cases")
            if case_modality[case_id] not in modalities:
                raise InputError(
                    f"{where}: {case_id!r} in the {part} part is of modality {case_modality[case_id]!r}: expected "
                    f"{' or '.join(modalities)}; prepare the data again"
                )
            if case_id in seen:
                raise InputError(f"{where}: case {case_id!r} is in {seen[case_id]} and in {part}: keep it in one part")
            seen[case_id] = part
        for modality in modalities:
            if not any(case_modality[c] == modality for c in split.get(part, ())):
                raise InputError(
                    f"{where}: the {part} part has no {modality} case: expected at least one; "
                    "add cases or choose another split"
                )
