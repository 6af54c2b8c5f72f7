"""From raw cases to a prepared data set: verify everything, then prepare in parallel, then describe the set.

Nothing is written while there is a problem. A case is written whole or not at all, and left alone while its source
files and the recipe are unchanged, so a run can be stopped at any time and started again.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from data_prep.raw import Note, Problem, RawCase, source_names
from data_prep.splits import Split, by_part
from ummkd_tf import preprocessing
from ummkd_tf.cases import (
    check_split,
    file_checksum,
    read_source_checksum,
    recipe_checksum,
    source_checksum,
    write_case,
    write_dataset,
)
from ummkd_tf.errors import InputError
from ummkd_tf.tasks import Task
from ummkd_tf.volumes import reorient, same_geometry

Item = TypeVar("Item")
Result = TypeVar("Result")

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


def verify(cases: Sequence[RawCase], task: Task, workers: int, note: Note) -> tuple[list[Problem], int]:
    """Inspects all cases.

    Returns:
        Every problem, and the bytes their prepared files need at most.
    """
    inspections = list(over_cases(partial(inspect, task=task), cases, workers, "verify"))
    for inspection in inspections:
        for text in inspection.notes:
            note(text)
    return [p for i in inspections for p in i.problems], sum(i.size_bytes for i in inspections)


def outdated(cases: Sequence[RawCase], task: Task, out: Path, workers: int) -> list[RawCase]:
    """Cases whose prepared file is missing, damaged, or made from other source files or by another recipe."""
    current = over_cases(partial(_is_current, task=task, out=out), cases, workers, "compare")
    return [case for case, is_current in zip(cases, current, strict=True) if not is_current]


def prepare(
    cases: Sequence[RawCase],
    task: Task,
    out: Path,
    *,
    split: Split,
    split_name: str,
    workers: int,
    note: Note,
    dry_run: bool = False,
) -> list[Problem]:
    """Prepares the cases of a split in `out`.

    Args:
        cases: Raw cases; those not in the split are left out.
        task: Row of the task table.
        out: Folder of the prepared data set.
        split: Case ids by modality (in the order batches use) and part.
        split_name: Said in `dataset.json`.
        workers: Processes.
        note: Takes one line for each remarkable thing.
        dry_run: Only say what would be done.

    Returns:
        Problems; when there is one, nothing has been written.

    Raises:
        InputError: A split that does not fit, a full disk, or a worker that was ended.
    """
    parts = by_part(split)
    chosen = {case_id for ids in parts.values() for case_id in ids}
    case_modality = {case.case_id: case.modality for case in cases if case.case_id in chosen}
    check_split(parts, case_modality, tuple(split), f"split {split_name}")
    left_out = [case.case_id for case in cases if case.case_id not in chosen]
    if left_out:
        note(f"not in the split and left out: {', '.join(left_out)}")
    wanted = [case for case in cases if case.case_id in chosen]
    to_do = outdated(wanted, task, out, workers)
    problems, size_bytes = verify(to_do, task, workers, note)
    if problems:
        return problems
    _check_space(out, size_bytes)
    if dry_run:
        for case in wanted:
            note(f"{case.case_id}: {'would be prepared from' if case in to_do else 'is up to date with'} {case.image}")
        return []

    _remove_leftovers(out)
    for _ in over_cases(partial(_prepare_case, task=task, out=out), to_do, workers, "prepare"):
        pass
    write_dataset(
        out, task=task, case_modality=case_modality, split=parts, split_name=split_name, modalities=tuple(split)
    )
    unlisted = sorted({path.stem for path in (out / "cases").glob("*.h5")} - set(case_modality))
    if unlisted:
        note(f"in {out / 'cases'} from an earlier run, and no longer part of the data set: {', '.join(unlisted)}")
    note(f"{len(to_do)} cases prepared, {len(wanted) - len(to_do)} already up to date, in {out}")
    return []


def over_cases(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, title: str
) -> Iterator[Result]:
    """Results in the order of the items, computed by `workers` processes behind a progress bar.

    Raises:
        InputError: A process was ended from outside.
    """
    bar = partial(tqdm, total=len(items), desc=title, unit="case", disable=not items)
    if workers == 1 or len(items) < 2:
        _one_thread()
        yield from bar(map(function, items))
        return
    # Spawned, because a forked process can inherit a lock of a library's thread.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(items)), context, _one_thread) as pool:
        try:
            yield from bar(pool.map(function, items))
        except BrokenProcessPool as error:
            raise InputError(
                f"a worker process was ended while doing '{title}', most likely for want of memory: "
                "finished cases are kept; run again with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    """One core a process, so that memory and speed grow with the workers as one expects."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


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
    except (InputError, OSError):  # verification tells the reason
        return False


def _prepare_case(case: RawCase, task: Task, out: Path) -> None:
    source = _source(case)
    image, label = case.read()
    try:
        prepared = preprocessing.prepare(image, label, task, case.modality)
    except InputError as error:
        raise InputError(f"{case.image}: {error}") from error
    write_case(
        _case_path(out, case), prepared, case_id=case.case_id, modality=case.modality, task=task, source=source
    )


def _check_space(out: Path, size_bytes: int) -> None:
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < size_bytes:
        raise InputError(
            f"{out}: disk full, {free / 2**20:.0f} MiB free: expected {size_bytes / 2**20:.0f} MiB; make room or choose "
            "another --out; nothing was written"
        )


def _remove_leftovers(out: Path) -> None:
    """Removes the temporary folders of a run that was killed."""
    for folder in (*out.glob(".writing-*"), *out.glob("cases/.writing-*")):
        shutil.rmtree(folder, ignore_errors=True)


def default_workers() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
