"""What every source module produces: raw cases to read, and problems to report."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError, listed, one_line
from ummkd_tf.common.files import files_in_order
from ummkd_tf.scans.geometry import Volume
from ummkd_tf.scans.itk import files_of
from ummkd_tf.scans.plausibility import check_machine
from ummkd_tf.scans.reading import Scan, on_grid_of, read_label, read_scan

Note = Callable[[str], None]

_LEVELS = 4  # of folders between --raw and a data set


def no_note(text: str) -> None:
    """Drops a note."""


@dataclass(frozen=True)
class Problem:
    """Something that keeps a data set from being prepared; `str()` is the line 'file: problem: fix'."""

    file: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return one_line(": ".join(part for part in (self.file, self.problem, self.fix) if part))

    @classmethod
    def of(cls, error: InputError) -> Problem:
        """The problem that an `InputError` describes."""
        return cls(error.where, error.problem, error.fix)


def report(problems: Sequence[Problem], consequence: str = "nothing was written") -> int:
    """Prints the problems and their consequence; the exit code that goes with them."""
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(f"error: {len(problems)} problem(s), {consequence}", file=sys.stderr)
    return 1 if problems else 0


def whole_file(case: RawCase, scan: Scan | None, note: Note) -> Volume:
    """Reads the label map of a case from one file."""
    return read_label(case.label)


@dataclass(frozen=True)
class RawCase:
    """One scan with its label map, as downloaded.

    Attributes:
        case_id: Unique in the data set, e.g. "ct_0001".
        modality: E.g. "ct".
        image: Image file or DICOM folder.
        label: Label file or folder.
        label_values: Task class by the file's label value; any other value is an error.
        label_reader: Reads the label map in the file's values, given the scan as it was read (None where that failed),
            and notes what it had to mend. A module-level function, so that a case can be sent to a worker process.
        patient: Whose scan it is, where the source says so; else "".
    """

    case_id: str
    modality: str
    image: Path
    label: Path
    label_values: Mapping[int, int]
    label_reader: Callable[[RawCase, Scan | None, Note], Volume] = field(default=whole_file)
    patient: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every source file of the case."""
        return tuple(
            file
            for path in (self.image, self.label)
            for file in (files_in_order(path) if path.is_dir() else files_of(path))
        )

    def read_scan(self) -> Scan:
        """Reads the scan.

        Raises:
            InputError: As `scans.reading.read_scan`, or DICOM files of another machine than the modality speaks of.
        """
        scan = read_scan(self.image)
        check_machine(scan.modality, self.modality, self.image)
        return scan

    def read_label(self, scan: Scan | None, note: Note = no_note) -> Volume:
        """Reads the label map as task classes (uint8).

        Args:
            scan: What `read_scan` gave, so that no file is read twice; None where it failed.
            note: Takes a line for each thing that had to be mended.

        Raises:
            InputError: As `read_volume`, or a label value outside `label_values`.
        """
        volume = self.read_label_values(scan, note)
        return Volume(remap(volume.array, self.label_values, self.label), volume.affine)

    def read_label_values(self, scan: Scan | None, note: Note = no_note) -> Volume:
        """Reads the label map in the file's own values; otherwise as `read_label`."""
        volume = self.label_reader(self, scan, note)
        if scan is None:
            return volume
        if np.array_equal(scan.volume.array, volume.array):
            raise InputError(
                "the label map is the image itself, voxel for voxel",
                where=self.label,
                fix="expected an image and a map of its classes; correct the paths",
            )
        return on_grid_of(scan.volume.grid, volume, self.label)


@dataclass(frozen=True)
class Found:
    """Result of looking through a raw folder.

    Attributes:
        cases: In the order of their ids.
        problems: What is missing or twice.
        split: Case ids by modality and part, where the source itself says so.
        notes: What is odd but handled.
    """

    cases: Sequence[RawCase]
    problems: Sequence[Problem] = ()
    split: Mapping[str, Mapping[str, Sequence[str]]] | None = None
    notes: Sequence[str] = ()


def remap(values: NDArray[np.int32], classes: Mapping[int, int], path: Path) -> NDArray[np.uint8]:
    """Replaces a file's label values by task classes.

    By value, never by rank: an organ may be absent from a case.

    Raises:
        InputError: A value that is not in `classes`.
    """
    size = max(classes) + 1
    unknown = np.iinfo(np.uint8).max
    table = np.full(size + 2, unknown, np.uint8)  # entries `size` and -1 catch every value beyond the list
    table[list(classes)] = list(classes.values())
    result = np.empty_like(values, np.uint8)
    for k in range(values.shape[-1]):  # slice by slice, because the clipped values take four times the result's memory
        result[..., k] = table[np.clip(values[..., k], -1, size)]
    wrong = result == unknown
    if wrong.any():
        found, counts = np.unique(values[wrong], return_counts=True)
        shown = [f"{value} ({count} voxels)" for value, count in zip(found, counts, strict=True)]
        raise InputError(
            f"unknown label value {listed(shown)}",
            where=path,
            fix=f"expected only {_ranges(sorted(classes))}; correct the file, or say what each value is (--label_map)",
        )
    return result


def _ranges(values: Sequence[int]) -> str:
    """`0, 56–70` for 0, 56, 57, …, 70."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def entries(folder: Path) -> list[Path]:
    """What a folder holds.

    Raises:
        InputError: The folder cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{error.strerror}", where=folder, fix="check the path and its permissions") from error


def numbered(folder: Path, pattern: str) -> dict[str, list[Path]]:
    """Entries of a folder whose name matches `pattern` entirely, by its first group, in order of that group.

    Raises:
        InputError: As `entries`.
    """
    result: dict[str, list[Path]] = {}
    for entry in entries(folder):
        match = re.fullmatch(pattern, entry.name)
        if match:
            result.setdefault(match[1], []).append(entry)
    return dict(sorted(result.items(), key=lambda item: (len(item[0]), item[0])))


def unmatched(folder: Path, used: Iterable[Sequence[Path]], beginning: str = "") -> list[str]:
    """A note on the NIfTI files of a folder that are none of the used ones, where there are such files."""
    known = {path for paths in used for path in paths}
    names = sorted(
        path.name
        for path in folder.glob(f"{beginning}*")
        if ".nii" in path.name.lower() and not path.name.startswith(".") and path not in known
    )
    return [f"{folder}: left out, because their names are not as expected: {listed(names)}"] if names else []


def pair(images: Mapping[str, Sequence[Path]], labels: Mapping[str, Sequence[Path]]) -> tuple[list[str], list[Problem]]:
    """Keys that have exactly one image and one label, and the problems of all others."""
    problems = []
    for kind, mine, other in (("image", images, labels), ("label", labels, images)):
        missing = "label" if kind == "image" else "image"
        for key, paths in mine.items():
            if key not in other:
                problems.append(
                    Problem(str(paths[0]), f"no {missing} for this {kind}", f"add it, or remove the {kind}")
                )
            if len(paths) > 1:
                names = " and ".join(path.name for path in paths)
                problems.append(Problem(str(paths[0].parent), f"the same case twice ({names})", "keep one of them"))
    return [k for k in images if k in labels and len(images[k]) == len(labels[k]) == 1], problems


def find_root(raw: Path, fits: Callable[[Path], bool], what: str, tree: str) -> Path:
    """The folder of a data set: `raw` itself where it fits, or else the only folder below that does.

    Downloads are unpacked in many ways, as to RAW/btcv/Abdomen/RawData/Training.

    Raises:
        InputError: No folder fits, or several.
    """
    names = [path.name for path in entries(raw)]
    found: dict[Path, Path] = {}  # by the folder itself, because links can lead to it twice
    level = [raw]
    for _ in range(_LEVELS + 1):
        fitting = [folder for folder in level if fits(folder)]
        found |= {folder.resolve(): folder for folder in fitting}
        if raw in fitting:
            break
        level = [inner for folder in level if folder not in fitting for inner in _folders(folder)]
    if len(found) > 1:
        raise InputError(
            f"{what} in {len(found)} folders ({listed([str(folder) for folder in found.values()])})",
            where=raw,
            fix="expected one; give its path",
        )
    if not found:
        raise InputError(
            f"no {what} found",
            where=raw,
            fix=f"expected {tree}, here or up to {_LEVELS} folders below; here are {listed(names) or 'no files'}; "
            "see docs/data.md",
        )
    return next(iter(found.values()))


def _folders(folder: Path) -> list[Path]:
    """Readable folders inside of one, without hidden ones and the __MACOSX of zip archives."""
    return [
        path
        for path in entries(folder)
        if not path.name.startswith((".", "_")) and path.is_dir() and os.access(path, os.R_OK | os.X_OK)
    ]


def source_names(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their path below the deepest folder common to all, so that names do not depend on where RAW lies."""
    common = os.path.commonpath([file.absolute().parent for file in files])
    return {os.path.relpath(file, common): file for file in files}
