"""The authors' released data, used as it is: training records, list files and test volumes (SPEC §5).

A training record (`*.tfrecords`) holds one slice with its two neighbours and the slice's label. A list file names one
record a line. A test volume is an `.npz` file, or the pair of NIfTI files that such a file is made from; in the plane
it lies half a turn from the records, so reading it turns it back. Volumes cannot be rebuilt from records (the slices
are shuffled and augmented, and name no patient): only the 2D network can be trained on them.

`data_prep.released` checks a folder of such files once and describes it in `released.json`:

<data_dir>/released.json           records of each modality and part, what label 5 means, checksum
<data_dir>/cases/<case_id>.h5      test volumes as cases, see `ummkd_tf.cases`
<raw>/…                            the records themselves, wherever they were unpacked
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.cases import RELEASED, Case, Dataset
from ummkd_tf.documents import MALFORMED, read_json, read_npz, strings
from ummkd_tf.errors import InputError
from ummkd_tf.preprocessing import Prepared, reduce_image, reduce_label
from ummkd_tf.sampling import Example, Examples
from ummkd_tf.tasks import Task, get_task
from ummkd_tf.volumes import Affine, Grid, Volume, as_labels, read_volume, reorient, replacing

if TYPE_CHECKING:
    from ummkd_tf.inference import Predictor

TASK = "cardiac"
MODALITIES = ("ct", "mr")
RECORD_PARTS = ("train", "validation")

SHAPE = (256, 256, 3)
"""Rows, columns and neighbouring slices of a record."""

OUTSIDE = 5
"""A label beyond the task's classes 0..4 that released files contain."""

OutsideLabel = Literal["ignored", "background"]
"""What `OUTSIDE` is in training: no class at all, as in the released code (its one-hot is zero), or class 0."""

_SIZES = {f"{kind}size_dim{axis}": size for kind in "dl" for axis, size in enumerate(SHAPE)}


# --- training records ------------------------------------------------------------------------------------------------


def read_record(path: str | Path) -> Example:
    """Reads one training record.

    Returns:
        (image, label): float32 [256, 256, 3], the slices k-1, k, k+1 bit for bit; uint8 [256, 256], the class map
        (0..5) of slice k, which is channel 1 of the stored label.

    Raises:
        InputError: Damaged, not exactly one example, other sizes, a value that is not finite, or no such label.
    """
    path = Path(path)
    features = _features(path)
    for name, size in _SIZES.items():
        found = list(features[name].int64_list.value)
        if found != [size]:
            raise InputError(f"{path}: {name} is {found}: expected [{size}]; use the authors' released records")
    image, label = (_array(path, name, list(features[name].bytes_list.value)) for name in ("data_vol", "label_vol"))
    return _checked_image(image, path), _checked_label(label[:, :, 1], path)


@functools.cache
def _only_element() -> Callable[[str], Any]:
    """Reads the one example of a file; as a graph, because an eager data set costs ten times as much."""
    import tensorflow as tf

    return tf.function(
        lambda path: tf.data.TFRecordDataset(path).get_single_element(),
        input_signature=[tf.TensorSpec([], tf.string)],
    )


def _features(path: Path) -> Mapping[str, Any]:
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise InputError(f"{path}: no such record: check the path")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: not readable: check the file's permissions")
    try:
        return tf.train.Example.FromString(_only_element()(str(path)).numpy()).features.feature
    except tf.errors.InvalidArgumentError as error:
        found = "more than one example" if path.stat().st_size else "empty file (0 bytes)"
        raise InputError(f"{path}: {found}: expected one record; copy or unpack it again") from error
    except (tf.errors.OpError, DecodeError) as error:
        raise InputError(f"{path}: damaged or truncated record: copy or unpack it again") from error


def _array(path: Path, name: str, values: Sequence[bytes]) -> NDArray[np.float32]:
    expected = 4 * int(np.prod(SHAPE))
    if [len(value) for value in values] != [expected]:
        found = f"{len(values[0])} bytes" if values else "missing"
        raise InputError(f"{path}: {name} is {found}: expected {expected} bytes of float32; copy or unpack it again")
    return np.frombuffer(values[0], "<f4").reshape(SHAPE)


def _checked_image(image: NDArray, path: Path) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        image = image.astype(np.float32, copy=False)
    if not np.isfinite(image).all():
        raise InputError(f"{path}: NaN or infinite values in the image: expected finite ones; copy or unpack it again")
    return image


def _checked_label(label: NDArray, path: Path) -> NDArray[np.uint8]:
    values = as_labels(label, path)
    if values.min() < 0 or values.max() > OUTSIDE:
        raise InputError(
            f"{path}: label values {values.min()} to {values.max()}: expected 0 to {OUTSIDE}; "
            "use the authors' released files"
        )
    return values.astype(np.uint8)


def without_outside(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class map with background in the place of `OUTSIDE`."""
    return np.where(label == OUTSIDE, 0, label).astype(np.uint8)


# --- list files ------------------------------------------------------------------------------------------------------

FilesByName = Mapping[str, Sequence[Path]]


def files_by_name(folder: str | Path) -> FilesByName:
    """All visible files below a folder, by file name.

    Raises:
        InputError: A folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: {error.strerror}: check the path and its permissions") from error

    found: dict[str, list[Path]] = {}
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                found.setdefault(name, []).append(Path(place, name))
    return found


def read_list(path: str | Path, folder: str | Path) -> list[Path]:
    """Files that a list file names, one a line; blank lines are left out, and nothing else is.

    The authors' lists hold paths of their own machines, so a line means the file of that name below `folder`; of
    several, the one whose folders agree best with the line. Nothing outside `folder` is ever looked at.

    Raises:
        InputError: The first of `find_listed`'s problems.
    """
    files, problems = find_listed(path, files_by_name(folder), folder)
    if problems:
        raise problems[0]
    return files


def find_listed(path: str | Path, files: FilesByName, folder: str | Path) -> tuple[list[Path], list[InputError]]:
    """As `read_list`, but with every problem: a list that cannot be read or is empty, a missing or ambiguous file, and
    a file named twice."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [], [InputError(f"{path}: not a readable text file ({error}): expected one path a line")]
    named = {number: line.strip().replace("\\", "/") for number, line in enumerate(lines, start=1) if line.strip()}
    if not named:
        return [], [InputError(f"{path}: empty list: expected one path a line; copy or unpack it again")]
    found: dict[Path, int] = {}
    problems = []
    for number, line in named.items():
        wanted = PurePosixPath(line)
        candidates = _best_matches(wanted, files.get(wanted.name, ()))
        text = None
        if not candidates:
            text = f"no file {wanted.name} below {folder}: expected every listed file; add it or remove the line"
        elif len(candidates) > 1:
            text = f"{len(candidates)} files {wanted.name} fit {line}: expected one; remove the others"
        elif candidates[0] in found:
            text = f"{wanted.name} is already in line {found[candidates[0]]}: expected every file once; remove one line"
        else:
            found[candidates[0]] = number
        if text:
            problems.append(InputError(f"{path} line {number}: {text}"))
    if not found and len(problems) > 1:
        fix = f"expected them as {PurePosixPath(named[min(named)]).name}; unpack the records there"
        problems = [InputError(f"{path}: none of its {len(named)} files is below {folder}: {fix}")]
    return list(found), problems


def _best_matches(wanted: PurePosixPath, candidates: Iterable[Path]) -> list[Path]:
    """The candidates whose last folders agree with the wanted path's longest."""

    def agreement(candidate: Path) -> int:
        pairs = zip(reversed(candidate.parts), reversed(wanted.parts), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    ranked = {candidate: agreement(candidate) for candidate in candidates}
    return [candidate for candidate, rank in ranked.items() if rank == max(ranked.values())]


# --- test volumes ----------------------------------------------------------------------------------------------------

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
            f"{path}: image {image.shape} and label {label.shape}: expected both as {SHAPE[:2]} and slices; "
            "use the authors' released files"
        )
    if image.dtype.kind not in "iuf" or label.dtype.kind not in "iuf":
        raise InputError(f"{path}: values of type {image.dtype} and {label.dtype}: expected numbers; copy it again")
    image, label = (np.ascontiguousarray(np.flip(array, (0, 1))) for array in (image, label))
    return _checked_image(image, path), _checked_label(label, path)


def _read_npz(path: Path) -> tuple[NDArray, NDArray]:
    try:
        content = read_npz(path, ("arr_0", "arr_1"))
    except KeyError as error:
        raise InputError(
            f"{path}: no arr_0 and arr_1: expected an image and its label; use the released file"
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: not a readable .npz file: no such file; check the path") from error
    return content["arr_0"], content["arr_1"]


def _read_pair(path: Path) -> tuple[NDArray, NDArray]:
    if not path.name.startswith("image") or not path.name.endswith(_NIFTI):
        raise InputError(f"{path}: not a test volume: expected *.npz, or image_*.nii.gz beside its gth_*.nii.gz")
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
    are assumed (1 mm; "about 1 mm isotropic", SPEC §5). No axis is turned to the task's in either case, because a
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
            f"{reference}: {problem}: expected the test volume's image or label itself, or shape "
            f"{image.shape[::-1]}; remove the file to assume 1 mm voxels"
        )
    return fitting[0][1]


# --- the data set ----------------------------------------------------------------------------------------------------


def read_example(path: Path, factor: int, outside: OutsideLabel) -> Example:
    """`read_record` for a network: reduced in the plane by `factor`, `OUTSIDE` as chosen."""
    image, label = read_record(path)
    if outside == "background":
        label = without_outside(label)
    return reduce_image(image, factor), reduce_label(label[..., np.newaxis], factor)[..., 0]


class RecordExamples:
    """Training records of one modality, uniform over all; read from disk whenever they are drawn.

    Args:
        paths: Record files.
        factor: In-plane reduction.
        outside: What label `OUTSIDE` is.
    """

    def __init__(self, paths: Sequence[Path], factor: int, outside: OutsideLabel) -> None:
        self._paths, self._factor, self._outside = list(paths), factor, outside

    def _choose(self, rng: np.random.Generator) -> Path:
        return self._paths[rng.integers(len(self._paths))]

    def draw(self, rng: np.random.Generator) -> Example:
        return read_example(self._choose(rng), self._factor, self._outside)

    def origin(self, rng: np.random.Generator) -> str:
        return self._choose(rng).name

    def labels(self) -> Iterable[NDArray[np.uint8]]:
        return (without_outside(read_record(path)[1]) for path in self._paths)


@dataclass(frozen=True)
class ReleasedDataset(Dataset):
    """A folder of released records with their test volumes; ids of train and validation are records.

    Attributes:
        raw: Folder of the records; an id is a record's path below it.
        outside: What label `OUTSIDE` is in training. In evaluation it is none of the structures.
        sha256: Checksum over all records and test volumes.
    """

    raw: Path
    outside: OutsideLabel
    sha256: str

    unit: ClassVar[str] = "records"

    @classmethod
    def load(cls, directory: str | Path) -> ReleasedDataset:
        """Reads `released.json` and checks that its files are there.

        Raises:
            InputError: No or another description, or a missing file.
        """
        directory = Path(directory)
        path = directory / RELEASED
        try:
            content = read_json(path)
            records = {
                m: {part: strings(parts[part]) for part in RECORD_PARTS} for m, parts in content["records"].items()
            }
            cases = content["cases"]
            dataset = cls(
                directory=directory,
                task=get_task(str(content["task"])),
                modalities=strings(content["modalities"]),
                case_modality={r: m for m, parts in records.items() for part in RECORD_PARTS for r in parts[part]}
                | {c: str(entry["modality"]) for c, entry in cases.items()},
                split={part: tuple(r for parts in records.values() for r in parts[part]) for part in RECORD_PARTS}
                | {"test": tuple(cases)},
                split_name=str(content["split_name"]),
                source="released records",
                raw=Path(content["raw"]),
                outside=content["label_5"],
                sha256=str(content["sha256"]),
            )
        except InputError:
            raise
        except MALFORMED as error:
            raise InputError(
                f"{path}: not a description of released data ({error!r}): prepare the data again"
            ) from error
        if dataset.outside not in ("ignored", "background"):
            raise InputError(f"{path}: label_5 is {dataset.outside!r}: expected ignored or background; correct it")
        for record in (*dataset.split["train"], *dataset.split["validation"]):
            steps = PurePosixPath(record)
            if steps.is_absolute() or ".." in steps.parts or max(map(len, steps.parts), default=256) > 255:
                raise InputError(
                    f"{path}: record {record!r}: expected a path below {dataset.raw}; prepare the data again"
                )
            if not (dataset.raw / record).is_file():
                raise InputError(f"{dataset.raw / record}: missing record: restore it or prepare the data again")
        for case_id in dataset.split["test"]:
            if not dataset.path(case_id).is_file():
                raise InputError(f"{dataset.path(case_id)}: missing case file: prepare the data again")
        return dataset

    def records(self, part: str, modality: str) -> list[Path]:
        """Record files of a part and modality."""
        return [self.raw / record for record in self.ids(part, modality)]

    def case(self, case_id: str, factor: int = 1) -> Case:
        """Reads one test volume, reduced in the plane by `factor`.

        Raises:
            InputError: The id is a record's.
        """
        if case_id not in self.split["test"]:
            raise InputError(f"{case_id}: a single slice: only the test part has volumes; use --part=test")
        return super().case(case_id, factor)

    def examples(self, modality: str, rank: int, factor: int = 1) -> Examples:
        """Training records of a modality.

        Raises:
            InputError: For the 3D network.
        """
        if rank != 2:
            raise InputError(
                f"{self.directory}: released records are slices with their neighbours: expected the 2D network, which "
                "needs no volumes; give --network=dilated2d"
            )
        return RecordExamples(self.records("train", modality), factor, self.outside)

    def validation(self, predictor: Predictor, factor: int = 1) -> Callable[[], dict[str, float]] | None:
        """Score over the validation records, see `pooled_dice`; None where the release was described without any."""
        records = {m: self.records("validation", m) for m in self.modalities}
        if not all(records.values()):
            return None
        return lambda: pooled_dice(predictor, records, factor)

    @property
    def split_checksum(self) -> str:
        """sha256 over the split, the files' contents, and what label 5 is."""
        return hashlib.sha256(json.dumps([self.split, self.sha256, self.outside], sort_keys=True).encode()).hexdigest()


def pooled_dice(predictor: Predictor, records: Mapping[str, Sequence[Path]], factor: int = 1) -> dict[str, float]:
    """Dice of each class over all pixels of all records, mean over classes, then modalities.

    Our choice, because records are loose slices: most lack most classes, so a mean of slice scores would hang on how
    empty slices count.

    Args:
        predictor: Holds the 2D model.
        records: Record files by modality; together they show at least one class.
        factor: In-plane reduction of the model.

    Returns:
        "dice" and "<modality>_dice", 0..1. A class that is in no reference and no prediction is left out.
    """
    model, size = predictor.model, predictor.batch_size
    scores = {}
    for modality, paths in records.items():
        common = np.zeros(model.num_classes)
        total = np.zeros(model.num_classes)
        for first in range(0, len(paths), size):
            batch = [read_example(path, factor, "background") for path in paths[first : first + size]]
            logits = model.predict_on_batch({modality: np.stack([image for image, _ in batch])})[modality]
            predicted, label = np.argmax(logits, axis=-1), np.stack([label for _, label in batch])
            for c in range(1, model.num_classes):
                common[c] += np.count_nonzero((predicted == c) & (label == c))
                total[c] += np.count_nonzero(predicted == c) + np.count_nonzero(label == c)
        scores[f"{modality}_dice"] = float(np.mean(2 * common[total > 0] / total[total > 0]))
    return {"dice": float(np.mean(list(scores.values()))), **scores}


def write_description(
    directory: Path,
    *,
    raw: Path,
    records: Mapping[str, Mapping[str, Sequence[str]]],
    cases: Mapping[str, Mapping[str, str | None]],
    split_name: str,
    outside: OutsideLabel,
    sha256: str,
) -> None:
    """Writes `released.json`.

    Args:
        directory: Folder of the description and of `cases/`.
        raw: Folder of the records.
        records: Paths below `raw` by modality and part.
        cases: "modality", "source" and "reference" by test case.
        split_name: Where the parts come from.
        outside: What label `OUTSIDE` is in training.
        sha256: Checksum over all files.
    """
    content = {
        "task": TASK,
        "modalities": list(MODALITIES),
        "label_5": outside,
        "raw": str(raw.absolute()),
        "split_name": split_name,
        "sha256": sha256,
        "counts": {m: {part: len(paths) for part, paths in parts.items()} for m, parts in records.items()},
        "cases": cases,
        "records": records,
    }
    with replacing(directory / RELEASED) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
