"""The authors' released training records and test volumes: checked, and described in a `released.json`.

The records stay where they are and are trained on directly. The test volumes become HDF5 cases, so that evaluation and
pictures treat them like every other case; their voxels stay the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep import pipeline
from data_prep.sources.raw_case import Note, Problem, no_note
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.progress import progress
from ummkd_tf.data.cases import CASES, case_file, file_checksum, is_current, source_checksum, write_case
from ummkd_tf.data.dataset import DATASET, RELEASED
from ummkd_tf.data.released_dataset import RECORD_PARTS, write_description
from ummkd_tf.released.lists import FilesByName, files_by_name, find_listed
from ummkd_tf.released.records import MODALITIES, OUTSIDE, TASK, OutsideLabel, read_record
from ummkd_tf.released.test_volumes import label_file, prepare_test_volume, reference_file, volume_files
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.tasks import get_task

_MODALITY_WORDS = {"ct": "ct", "mr": "mr", "mri": "mr"}
_PART_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_LIST_SUFFIXES = ("", ".txt", ".lst")
_ALL_TRAINED = "mr"  # the released lists train and validate on all of MM-WHS's scans of this modality
_THREADS = 4  # threads are enough: disk and checksums run outside of Python's global lock
_STRUCTURES = frozenset(range(1, OUTSIDE))
_VOXEL_BYTES = 4 + 1 + 1  # float32 image, label on the prepared and on the original grid


@dataclass(frozen=True)
class Release:
    """What a folder of released files holds.

    Attributes:
        raw: The folder.
        lists: List file by modality and part.
        records: Record files by modality and part (train, validation).
        volumes: (modality, file) of the test volumes by case id.
        problems: What is missing, twice or ambiguous.
        notes: What is remarkable.
    """

    raw: Path
    lists: dict[tuple[str, str], Path] = field(default_factory=dict)
    records: dict[str, dict[str, list[Path]]] = field(default_factory=dict)
    volumes: dict[str, tuple[str, Path]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def all_records(self) -> Iterator[Path]:
        """The records of all lists."""
        return (record for parts in self.records.values() for records in parts.values() for record in records)


def find(raw: Path) -> Release:
    """Looks for list files, the records they name, and test volumes.

    A list file is a text file whose name holds a modality (ct, mr, mri) and a part (train, val, test), for example the
    authors' `ct_train_list`; train lists are needed, validation lists for both modalities or none. A test volume is a
    file of the modality's test list or, for CT without one, every `.npz` whose name holds the modality, else every
    NIfTI pair `image_<modality>_*` and `gth_<modality>_*`. MR volumes that no list names are left out, because the
    released records hold all 20 MR scans of MM-WHS, of some of which the README of the authors' SIFA links volumes.
    """
    release = Release(raw)
    try:
        files = files_by_name(raw)
    except InputError as error:
        release.problems.append(Problem.of(error))
        return release
    _find_lists(release, files)
    for modality in MODALITIES:
        release.records[modality] = {part: _listed(release, files, modality, part) for part in RECORD_PARTS}
        _find_volumes(release, files, modality)
    _check_listed_once(release)
    with_validation = [m for m in MODALITIES if (m, "validation") in release.lists]
    if len(with_validation) == 1:
        text = f"a validation list for {with_validation[0]} only"
        release.problems.append(Problem(str(raw), text, "expected one for both modalities or none; add or remove one"))
    unnamed = sorted(n for n in files if n.endswith(".npz") and not _modalities(n))
    if unnamed:
        release.notes.append(f"not used, because their names hold neither ct nor mr: {', '.join(unnamed)}")
    return release


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", name.lower()))


def _modalities(name: str) -> set[str]:
    return {_MODALITY_WORDS[word] for word in _words(name) & _MODALITY_WORDS.keys()}


def _find_lists(release: Release, files: FilesByName) -> None:
    for path in (path for paths in files.values() for path in paths):
        words = _words(path.stem)
        modalities = _modalities(path.stem)
        parts = {_PART_WORDS[w] for w in words & _PART_WORDS.keys()}
        # "nii": the released code's lists of reference NIfTI files, which lie beside the volumes here.
        if path.suffix not in _LIST_SUFFIXES or len(modalities) != 1 or len(parts) != 1 or "nii" in words:
            continue
        key = (modalities.pop(), parts.pop())
        other = release.lists.setdefault(key, path)
        if other != path:
            text = f"a second list of {key[0]} {key[1]} beside {other}"
            release.problems.append(Problem(str(path), text, "expected one; remove or rename the other"))
    for modality in MODALITIES:
        if (modality, "train") not in release.lists:
            release.problems.append(
                Problem(
                    str(release.raw),
                    f"no list of {modality} training records",
                    f"expected a text file like {modality}_train_list with one path a line; add it",
                )
            )


def _listed(release: Release, files: FilesByName, modality: str, part: str) -> list[Path]:
    path = release.lists.get((modality, part))
    if path is None:
        return []
    found, errors = find_listed(path, files, release.raw)
    release.problems.extend(Problem.of(error) for error in errors)
    return found


def _check_listed_once(release: Release) -> None:
    seen: dict[Path, Path] = {}
    for modality, parts in release.records.items():
        for part, records in parts.items():
            for record in records:
                mine = release.lists[modality, part]
                other = seen.setdefault(record, mine)
                if other != mine:
                    text = f"{record.name} is also in {other}"
                    fix = "expected every record in one list; remove it from the others"
                    release.problems.append(Problem(str(mine), text, fix))


def _find_volumes(release: Release, files: FilesByName, modality: str) -> None:
    paths = _listed(release, files, modality, "test")
    if (modality, "test") not in release.lists:
        named = [path for name, same in files.items() if modality in _modalities(name) for path in same]
        paths = [path for path in named if path.suffix == ".npz"] or [
            path for path in named if path.name.startswith("image_") and label_file(path) in named
        ]
    if not paths:
        text = f"no {modality} test volume, so {modality} will not be evaluated"
        release.notes.append(f"{text}: expected .npz files, or image_ and gth_ NIfTI files, named with {modality}")
    elif modality == _ALL_TRAINED:
        trained = "the released lists train and validate on all 20 MR scans of MM-WHS"
        if (modality, "test") not in release.lists:
            names = ", ".join(sorted(path.name for path in paths))
            release.notes.append(
                f"not tested on, because {trained}: {names}; name other MR scans in a {modality}_test_list"
            )
            return
        listed = release.lists[modality, "test"].name
        release.notes.append(f"the volumes in {listed} must not be of MM-WHS, because {trained}")
    for path in paths:
        case_id = re.sub(r"\.npz$|\.nii(\.gz)?$", "", path.name).removeprefix("image_")
        if case_id in release.volumes:
            text = f"the same case twice ({case_id}, also {release.volumes[case_id][1]})"
            release.problems.append(Problem(str(path), text, "give every test volume a name of its own"))
        release.volumes[case_id] = (modality, path)


@dataclass(frozen=True)
class Inspection:
    """What reading one file found.

    Attributes:
        problem: What keeps it from being used.
        sha256: Checksum by file name, of the file and those read with it.
        labels: Which labels (0..5) a record shows.
        geometry: Where a test volume lies, in words.
        size_bytes: Upper bound of what is written for it.
    """

    problem: Problem | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    labels: frozenset[int] = frozenset()
    geometry: str = ""
    size_bytes: int = 0


def _inspect_record(path: Path) -> Inspection:
    try:
        label = read_record(path)[1]
        return Inspection(None, {path.name: file_checksum(path)}, frozenset(np.unique(label).tolist()))
    except InputError as error:
        return Inspection(Problem.of(error))


def _inspect_volume(path: Path) -> Inspection:
    try:
        grid = prepare_test_volume(path, get_task(TASK)).grid
        checksums = {file.name: file_checksum(file) for file in volume_files(path)}
        size_bytes = math.prod(grid.shape) * _VOXEL_BYTES
        return Inspection(None, checksums, geometry=_geometry(path, grid), size_bytes=size_bytes)
    except InputError as error:
        return Inspection(Problem.of(error))


def _geometry(path: Path, grid: Grid) -> str:
    reference = reference_file(path)
    source = f"by {reference.name}" if reference else "ASSUMED, since there is no reference NIfTI beside it"
    return f"{path.name}: {' × '.join(f'{s:.2f}' for s in grid.spacing_mm)} mm, axes {grid.axes} {source}"


def verify(raw: Path, note: Note = no_note) -> list[Problem]:
    """Reads every file of a release; every problem at once."""
    return _examine(raw, note)[2]


def _examine(raw: Path, note: Note) -> tuple[Release, dict[Path, Inspection], list[Problem]]:
    """Finds and reads everything, and notes what is used."""
    release = find(raw)
    inspections = _inspect(release)
    problems = _problems(release, inspections, note)
    for text in [] if problems else _summary(release, inspections):
        note(text)
    return release, inspections, problems


def _inspect(release: Release) -> dict[Path, Inspection]:
    """Reads every file once."""
    result: dict[Path, Inspection] = {}
    volumes = [path for _, path in release.volumes.values()]
    with ThreadPoolExecutor(_THREADS) as pool:
        for title, function, paths in (
            ("verify records", _inspect_record, list(release.all_records)),
            ("verify volumes", _inspect_volume, volumes),
        ):
            bar = progress(pool.map(function, paths), total=len(paths), desc=title, unit="file", disable=not paths)
            result.update(zip(paths, bar, strict=True))
    return result


def _problems(release: Release, inspections: Mapping[Path, Inspection], note: Note) -> list[Problem]:
    """Every problem of the release and of its files; what is remarkable goes to `note`."""
    problems = [*release.problems, *(i.problem for i in inspections.values() if i.problem)]
    for text in release.notes:
        note(text)
    for (modality, part), path in release.lists.items():
        found = [inspections[record] for record in release.records[modality].get(part, ())]
        if not found or any(inspection.problem for inspection in found):
            continue
        if not any(inspection.labels & _STRUCTURES for inspection in found):
            text = f"no {modality} {part} record shows any structure"
            problems.append(Problem(str(path), text, "expected labelled records; check the list"))
        outside = sum(OUTSIDE in inspection.labels for inspection in found)
        if outside:
            note(f"{modality} {part}: label {OUTSIDE} in {outside} of {len(found)} records, none of the structures")
    copies = Counter(tuple(i.sha256.values()) for i in inspections.values() if not i.problem)
    if len(copies) < copies.total():
        note(f"{copies.total() - len(copies)} of {copies.total()} files are copies of others")
    for modality, parts in release.records.items():
        contents = [{tuple(inspections[record].sha256.values()) for record in records} for records in parts.values()]
        if both := set.intersection(*contents) - {()}:
            note(
                f"{modality}: {len(both)} training records have copies in validation, by which the checkpoint is chosen"
            )
    return list(dict.fromkeys(problems))


def prepare_release(
    raw: Path, out: Path, *, outside: OutsideLabel = "ignored", note: Note = no_note, dry_run: bool = False
) -> list[Problem]:
    """Checks a release entirely, then writes its test volumes as cases and `released.json` to `out`.

    Args:
        raw: Folder of list files, records and test volumes.
        out: Folder for the description; may be `raw`.
        outside: What label 5 is in training.
        note: Takes one line for each remarkable thing.
        dry_run: Only say what would be done.

    Returns:
        Problems; when there is one, nothing has been written.

    Raises:
        InputError: `out` cannot be written to, or has no room.
    """
    release, inspections, problems = _examine(raw, note)
    if (out / DATASET).exists():
        problems.append(Problem(str(out), "holds another data set", "expected an empty folder; choose another --out"))
    if problems:
        return problems
    pipeline.check_space(out, sum(inspection.size_bytes for inspection in inspections.values()))
    if dry_run:
        return []
    # Before cases are replaced, so that a run that is killed meanwhile leaves no description of other volumes.
    (out / RELEASED).unlink(missing_ok=True)
    for case_id, (modality, path) in progress(release.volumes.items(), desc="convert", unit="case"):
        _convert(path, case_file(out / CASES, case_id), case_id, modality, inspections[path].sha256)
    checksums = {f"{_below(raw, path)}/{name}": s for path, i in inspections.items() for name, s in i.sha256.items()}
    write_description(
        out,
        raw=raw,
        records={
            m: {p: [_below(raw, r) for r in rs] for p, rs in parts.items()} for m, parts in release.records.items()
        },
        cases={c: {"modality": m, "source": _below(raw, path)} for c, (m, path) in release.volumes.items()},
        split_name="the released list files",
        outside=outside,
        sha256=source_checksum(checksums),
    )
    note(f"described in {out / RELEASED}")
    return []


def _convert(path: Path, target: Path, case_id: str, modality: str, source: Mapping[str, str]) -> None:
    """Writes a test volume as a case, unless it is there already."""
    task = get_task(TASK)
    if not is_current(target, case_id=case_id, modality=modality, task=task, source=source):
        prepared = prepare_test_volume(path, task)
        write_case(target, prepared, case_id=case_id, modality=modality, task=task, source=source)


def _below(raw: Path, path: Path) -> str:
    return path.relative_to(raw).as_posix()


def _summary(release: Release, inspections: Mapping[Path, Inspection]) -> list[str]:
    """What is used, and what it rests on."""
    lines = []
    for modality, parts in release.records.items():
        counts = [
            f"{len(paths)} {part} records ({release.lists[modality, part].name})"
            for part, paths in parts.items()
            if paths
        ]
        volumes = [path for m, path in release.volumes.values() if m == modality]
        lines.append(f"{modality}: {', '.join(counts)}, {len(volumes)} test volumes")
        lines += [inspections[path].geometry for path in volumes]
    if not any(parts["validation"] for parts in release.records.values()):
        lines.append("no validation lists: train with --selection=last")
    return lines
