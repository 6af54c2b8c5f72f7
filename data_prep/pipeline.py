"""From raw cases to a prepared data set: verify everything, then prepare in parallel, then describe the set.

Nothing is written while there is a problem. A case is written whole or not at all, and left alone while its source
files and the recipe are unchanged, so a run can be stopped at any time and started again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.sources.raw_case import Note, Problem, RawCase, source_names
from data_prep.sources.table import Options, Source
from data_prep.splits import Choice, Split, by_part
from data_prep.workers import Result, Workers
from ummkd_tf.common.documents import MALFORMED, read_json
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.cases import file_checksum, read_source_checksum, recipe_checksum, source_checksum, write_case
from ummkd_tf.data.dataset import DATASET, RELEASED, check_split, write_dataset
from ummkd_tf.scans import preprocessing
from ummkd_tf.scans.geometry import reorient, same_geometry
from ummkd_tf.tasks import Task

_IMAGE_AND_LABEL_BYTES = 4 + 1  # float32 and uint8


@dataclass(frozen=True)
class Inspection:
    """What looking at one raw case found.

    Attributes:
        problems: What keeps it from being prepared.
        notes: What is odd but handled.
        size_bytes: Upper bound of its prepared file.
    """

    problems: Sequence[Problem]
    notes: Sequence[str]
    size_bytes: int = 0


def inspect(case: RawCase, task: Task) -> Inspection:
    """Reads a case entirely and checks whatever preparation relies on."""
    problems: list[Problem] = []
    notes: list[str] = []

    def attempt(read: Callable[[], Result]) -> Result | None:
        try:
            return read()
        except InputError as error:
            problems.append(Problem.parse(error))
            return None

    image = attempt(case.read_image)
    label = attempt(lambda: case.read_label(notes.append))
    if image is not None:
        clipped = preprocessing.clip_intensity(image.array, task.clip_for(case.modality))
        if clipped.min() == clipped.max():
            text = f"every voxel has the value {clipped.flat[0]:g} after clipping"
            problems.append(Problem(str(case.image), text, "expected an image with contrast; copy it again"))
    if label is not None:
        present = np.flatnonzero(np.bincount(label.array.ravel(), minlength=task.num_classes))
        absent = [name for c, name in enumerate(task.class_names) if c and c not in present]
        if len(absent) == task.num_classes - 1:
            text = "no voxel of any class of the task"
            problems.append(Problem(str(case.label), text, "expected a labelled scan; check the file or leave it out"))
        elif absent:
            notes.append(f"{case.case_id}: no {', '.join(absent)} in the label map")
    if image is None or label is None:
        return Inspection(list(dict.fromkeys(problems)), notes)
    difference = same_geometry(image.grid, label.grid)
    if difference:
        problems.append(Problem(str(case.label), f"the label has {difference}", "use the image's own label map"))
    elif not np.array_equal(image.affine, label.affine):
        notes.append(f"{case.case_id}: image and label headers differ by rounding; the image's is used")
    grid = preprocessing.task_grid(reorient(image, task.axes).grid, np.zeros(3), task)
    size = int(np.prod(grid.shape)) * _IMAGE_AND_LABEL_BYTES + label.array.size
    return Inspection(problems, notes, size)


def verify(cases: Sequence[RawCase], task: Task, pool: Workers, note: Note) -> list[Problem]:
    """Inspects all cases; every problem of each."""
    return _report(pool.each(partial(inspect, task=task), cases, "verify"), note)[0]


def prepare_source(
    source: Source,
    options: Options,
    out: Path,
    *,
    choice: Choice,
    pool: Workers,
    note: Note,
    dry_run: bool = False,
    overwrite: bool = False,
) -> list[Problem]:
    """Finds the cases of a raw data set, verifies and prepares those of the chosen split in `out`.

    Returns:
        Problems; when there is one, nothing has been written.

    Raises:
        InputError: As `Choice.split` and `prepare`.
    """
    task, found = source.task_for(options), source.find(options)
    for text in found.notes:
        note(text)
    if found.problems:
        return [*found.problems, *verify(found.cases, task, pool, note)]
    modalities = source.modalities or dict.fromkeys(case.modality for case in found.cases)
    ids = {m: [case.case_id for case in found.cases if case.modality == m] for m in modalities}
    split_name, split = choice.split(ids, found.split)
    return prepare(
        found.cases,
        task,
        out,
        split=split,
        split_name=split_name,
        source=f"{'phantom ' if options.is_phantom else ''}{source.name}",
        held_out=choice.held_out,
        pool=pool,
        note=note,
        dry_run=dry_run,
        overwrite=overwrite,
    )


def prepare(
    cases: Sequence[RawCase],
    task: Task,
    out: Path,
    *,
    split: Split,
    split_name: str,
    source: str = "",
    held_out: Collection[str] = (),
    pool: Workers,
    note: Note,
    dry_run: bool = False,
    overwrite: bool = False,
) -> list[Problem]:
    """Prepares the cases of a split in `out`.

    Args:
        cases: Raw cases; those not in the split are left out.
        task: Row of the task table.
        out: Folder of the prepared data set.
        split: Case ids by modality (in the order batches use) and part.
        split_name: Said in `dataset.json`.
        source: Where the scans come from, said in `dataset.json`.
        held_out: Case ids to prepare although no part of the split has them.
        pool: The processes that do it.
        note: Takes one line for each remarkable thing.
        dry_run: Only say what would be done.
        overwrite: Replace another data set in `out`: of another source, task or modalities.

    Returns:
        Problems; when there is one, nothing has been written.

    Raises:
        InputError: A split that does not fit, another data set in `out`, a full disk, or a worker that was ended.
    """
    if (out / RELEASED).exists():
        raise InputError(f"{out}: holds released records: expected an empty folder; choose another --out")
    if not overwrite:
        _check_same(out, {"source": source, "task": task.name, "modalities": list(split)})
    parts = by_part(split)
    chosen = {case_id for ids in parts.values() for case_id in ids} | set(held_out)
    case_modality = {case.case_id: case.modality for case in cases if case.case_id in chosen}
    check_split(parts, case_modality, tuple(split), f"split {split_name}")
    left_out = [case.case_id for case in cases if case.case_id not in chosen]
    if left_out:
        note(f"not in the split and left out: {', '.join(left_out)}")
    wanted = [case for case in cases if case.case_id in chosen]
    inspections = list(pool.each(partial(_inspect_unless_current, task=task, out=out), wanted, "verify"))
    to_do = [case for case, inspection in zip(wanted, inspections, strict=True) if inspection]
    problems, size_bytes = _report(filter(None, inspections), note)
    if problems:
        return problems
    check_space(out, size_bytes)
    if dry_run:
        for case in wanted:
            note(f"{case.case_id}: {'would be prepared from' if case in to_do else 'is up to date with'} {case.image}")
        return []

    _remove_leftovers(out)
    for _ in pool.each(partial(prepare_case, task=task, out=out), to_do, "prepare"):
        pass
    write_dataset(
        out,
        task=task,
        case_modality=case_modality,
        split=parts,
        split_name=split_name,
        modalities=tuple(split),
        source=source,
    )
    unlisted = sorted({path.stem for path in (out / "cases").glob("*.h5")} - set(case_modality))
    if unlisted:
        note(f"in {out / 'cases'} from an earlier run, and no longer part of the data set: {', '.join(unlisted)}")
    note(f"{len(to_do)} cases prepared, {len(wanted) - len(to_do)} already up to date, in {out}")
    return []


def _case_path(out: Path, case: RawCase) -> Path:
    return out / "cases" / f"{case.case_id}.h5"


def _source(case: RawCase) -> dict[str, str]:
    """sha256 by source file, and the label values in words, because both decide the result."""
    checksums = {name: file_checksum(path) for name, path in source_names(case.files).items()}
    return checksums | {"label values": str(sorted(case.label_values.items()))}


def _is_current(case: RawCase, task: Task, out: Path) -> bool:
    try:
        found = read_source_checksum(_case_path(out, case))
        return found == (source_checksum(_source(case)), recipe_checksum(task))
    except (InputError, OSError):  # nothing prepared yet, or the inspection tells what is wrong
        return False


def _inspect_unless_current(case: RawCase, task: Task, out: Path) -> Inspection | None:
    return None if _is_current(case, task, out) else inspect(case, task)


def _report(inspections: Iterable[Inspection], note: Note) -> tuple[list[Problem], int]:
    """Passes the notes on; every problem, and the bytes the prepared files need at most."""
    problems: list[Problem] = []
    size_bytes = 0
    for inspection in inspections:
        problems += inspection.problems
        size_bytes += inspection.size_bytes
        for text in inspection.notes:
            note(text)
    return problems, size_bytes


def prepare_case(case: RawCase, task: Task, out: Path) -> None:
    source = _source(case)
    image, label = case.read()
    try:
        prepared = preprocessing.prepare(image, label, task, case.modality)
    except InputError as error:
        raise InputError(f"{case.image}: {error}") from error
    write_case(_case_path(out, case), prepared, case_id=case.case_id, modality=case.modality, task=task, source=source)


def _check_same(out: Path, wanted: Mapping[str, Any]) -> None:
    try:
        there = read_json(out / DATASET)
        found = {"source": there["source"], "task": there["task"]["name"], "modalities": there["modalities"]}
    except MALFORMED:  # none, or a damaged one, which is written anew
        return
    different = [f"{name} is {found[name]}, now {wanted[name]}" for name in wanted if found[name] != wanted[name]]
    if different:
        raise InputError(
            f"{out}: holds another data set ({'; '.join(different)}): choose another --out, or give --overwrite"
        )


def check_space(out: Path, size_bytes: int) -> None:
    """Refuses to begin what cannot be finished.

    Raises:
        InputError: Less than `size_bytes` free where `out` is or would be.
    """
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    total, _, free = shutil.disk_usage(existing)
    if not total:
        raise InputError(f"{out}: no place for files (a disk of 0 bytes): expected a folder; choose another --out")
    if free < size_bytes:
        raise InputError(
            f"{out}: disk full, {free / 2**20:.0f} MiB free: expected {size_bytes / 2**20:.0f} MiB; make room "
            "or choose another --out; nothing was written"
        )


def _remove_leftovers(out: Path) -> None:
    """Removes the temporary folders of a run that was killed."""
    for folder in (*out.glob(".writing-*"), *out.glob("cases/.writing-*")):
        shutil.rmtree(folder, ignore_errors=True)
